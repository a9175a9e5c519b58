"""From bundles and a dataset to metrics and a report: what the jobs ``evaluate`` and ``demo`` share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from counterray.bundle import Bundle, BundleError, code_version, open_bundle
from counterray.config import Config
from counterray.data.batching import LoaderConfig
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.loader import make_plan, stream
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.features import feature_judge, layer_judge
from counterray.evaluation.generator import (
    Judges,
    evaluate_counterfactuals,
    shuffled_donors,
    with_attributes,
)
from counterray.evaluation.generator_report import generator_report
from counterray.evaluation.judge import demographic_judges, judge_metrics, open_judge
from counterray.evaluation.metric import UnscorableError, as_json
from counterray.evaluation.metric_sections import metric_table
from counterray.evaluation.opening import (
    attributes_set_by,
    exact_counterfactuals,
    gather,
    open_editor,
    require_levels,
    word_source,
)
from counterray.evaluation.reading_set import export_reading_set
from counterray.evaluation.report import Report, Section
from counterray.evaluation.sections import (
    curves_section,
    dataset_section,
    limits_section,
    provenance_section,
)
from counterray.evaluation.settings import Settings
from counterray.evaluation.text_condition import TextCondition
from counterray.evaluation.wording import SYNTHETIC_NOTICE
from counterray.models.pathology_ldm.prompts import study_prompts
from counterray.storage import Location, MissingError, resolve
from jobs.ancestry import ancestors, require_apart

SCORING = ("classifier", "segmentor", "identity_encoder", "image_text_encoder", "demographic")
"""Stages whose bundles can score a generator."""

READING_SET, READING_KEY = "reading_set", "reading_set_key.csv"
"""What readers see, and what they must not."""

FeatureStage = Literal["classifier", "identity_encoder", "image_text_encoder"]
"""Stages whose features images can be compared by."""


class EvaluationError(ValueError):
    """A bundle cannot be scored on a dataset; the message says why."""


class EvaluateConfig(Config):
    """What to score on."""

    split: str = "test"
    """Split whose studies are scored."""
    studies: int = Field(default=1000, ge=2)
    """Studies to use at most, in stored order."""
    seed: int = Field(default=0, ge=0)
    """Seed of the donors' order and of the bootstrap."""
    cycles: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 10), min_length=1)
    """Numbers of repetitions for composition and reversibility."""
    law_studies: int = Field(default=64, ge=1)
    """Studies for composition and reversibility, which take many edits each."""
    minimum_positives: int = Field(default=50, ge=2)
    """Positive studies that a finding needs to count in macro averages."""
    features: FeatureStage = "classifier"
    """Stage of the judge by whose features images are compared: distances between sets, diversity,
    memorisation, perceptual distance."""
    training_studies: int = Field(default=4000, ge=2)
    """Training studies to compare with at most: for memorisation and the nearest training image."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """How the generator generates, settings of its stage's own: for `pathology_ldm` those of
    `GenerationConfig`, such as ``prompts`` or ``abduction.noise``."""
    reading_set: int = Field(default=0, ge=0)
    """Pairs of pictures to export for blinded readers, beside the report and apart from their key; 0 for
    none."""


def evaluate(
    config: EvaluateConfig, *, model: str, data: str, out: str, judges: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Scores a bundle, writes ``report.html`` and ``metrics.json`` to ``out``; returns the job's result.

    Raises:
        BundleError: If a bundle cannot be trusted, or cannot score.
        ConfigError: If a setting does not fit the bundle.
        EvaluationError: If the dataset does not have what the bundle is scored on.
        StorageError: If something cannot be read or written.
    """
    dataset, bundle = open_dataset(data), open_bundle(model)
    scorers = [open_bundle(uri) for uri in judges]
    _require_scorers(bundle, scorers)
    _require_size(dataset, bundle, *scorers)
    place = resolve(out)
    if config.reading_set and (place / READING_KEY).is_file():
        raise EvaluationError(
            f"{place.uri} holds a reading set and its key already, which readers' answers need. Give another "
            "--out, leave out reading_set, or delete both."
        )
    try:
        if bundle.method == "predictors":
            metrics, report = _judge_report(bundle, dataset, config)
        else:
            metrics, report = _generator_report(bundle, scorers, dataset, place, config)
    except UnscorableError as error:
        raise EvaluationError(
            f"{bundle.location.uri} cannot be scored on {dataset.location.uri}: {error}"
        ) from error
    (place / "metrics.json").write_json(metrics)
    (place / "report.html").write_bytes(report.render().encode())
    values = {name: metric["value"] for name, metric in metrics.items()}
    return {"metrics": values, "report": (place / "report.html").uri}


def _generator_report(
    bundle: Bundle, scorers: Sequence[Bundle], dataset: Dataset, place: Location, config: EvaluateConfig
) -> tuple[dict[str, Any], Report]:
    source, levels = _scored(dataset, config), attributes_set_by(bundle)
    donor = shuffled_donors(source, seed=config.seed)
    if levels:
        require_levels(levels, dataset.manifest.vocabulary)
        donor = with_attributes(source, donor, levels)
    condition = _text_condition(bundle, donor, dataset, config)
    evaluation = evaluate_counterfactuals(
        open_editor(bundle, config.generation, seed=config.seed),
        source,
        donor,
        judges=_judges(scorers, config),
        exact=exact_counterfactuals(dataset.manifest, levels),
        training=_others(dataset, "train", config.training_studies, config),
        validation=_others(dataset, "validation", config.studies, config),
        prevalence=_prevalence(dataset),
        attributes=tuple(levels),
        settings=Settings(
            cycles=config.cycles,
            law_images=config.law_studies,
            minimum_positives=config.minimum_positives,
            seed=config.seed,
        ),
    )
    by_judge = {
        scorer.stage: judge_metrics(scorer, source, minimum_positives=config.minimum_positives)
        for scorer in scorers
    }
    facts = _facts(dataset, config)
    if any(scorer.stage == config.features for scorer in scorers):
        facts["Images compared by"] = f"features of the judge {config.features}"
    if config.reading_set:
        facts["Reading set"] = _export(evaluation.counterfactuals, place, config)
    unchecked = _unchecked(bundle)
    report = generator_report(
        evaluation,
        title=f"Counterfactuals of {bundle.stage}",
        subtitle=f"This patient with that patient's {' and '.join(levels) or 'pathology'}"
        + (", scored by judges that trained apart." if scorers and not unchecked else "."),
        manifest=dataset.manifest,
        facts=facts,
        bundles={bundle.stage: bundle.checksum, **{f"judge {s.stage}": s.checksum for s in scorers}},
        config=bundle.config,
        judges=by_judge,
        records={scored.stage: _training_log(scored) for scored in (bundle, *scorers)},
        limits=unchecked,
        condition=condition,
    )
    values = as_json(evaluation.metrics)
    for stage, rows in by_judge.items():
        values |= {f"judge.{stage}.{name}": metric for name, metric in as_json(rows).items()}
    return values, report


def _judges(scorers: Sequence[Bundle], config: EvaluateConfig) -> Judges:
    judges = {scorer.stage: open_judge(scorer) for scorer in scorers if scorer.stage != "demographic"}
    reading = next((scorer for scorer in scorers if scorer.stage == "demographic"), None)
    comparing = next((scorer for scorer in scorers if scorer.stage == config.features), None)
    return Judges(
        classifier=judges.get("classifier"),
        segmentor=judges.get("segmentor"),
        identity=judges.get("identity_encoder"),
        features=feature_judge(comparing) if comparing else None,
        layers=layer_judge(comparing) if comparing else None,
        attributes=demographic_judges(reading) if reading else {},
    )


def _text_condition(
    bundle: Bundle, donor: Batch, dataset: Dataset, config: EvaluateConfig
) -> TextCondition | None:
    """What the generator is told of the donors; ``None`` where it looks at their images."""
    source = word_source(bundle, config.generation)
    if source is None:
        return None
    prompts = study_prompts(donor, source)
    if not any(prompts):
        raise UnscorableError(
            f"None of the {len(donor)} studies has a {source.replace('_', ' ')} for the generator to "
            "read. Run python -m jobs refine and score on its result, or set generation.prompts=labels."
        )
    return TextCondition(
        source=source, prompts=tuple(prompts), synthetic=dataset.manifest.source == "phantom"
    )


def _export(made: Counterfactuals, place: Location, config: EvaluateConfig) -> str:
    """Writes the reading set, and says where."""
    folder, key = place / READING_SET, place / READING_KEY
    items = export_reading_set(folder, key, made.source, made.image, made.asked, items=config.reading_set)
    return f"{items} pairs in {READING_SET}; their key in {READING_KEY}, which readers must not see"


def _judge_report(bundle: Bundle, dataset: Dataset, config: EvaluateConfig) -> tuple[dict[str, Any], Report]:
    batch = _scored(dataset, config)
    metrics = judge_metrics(bundle, batch, minimum_positives=config.minimum_positives)
    report = Report(f"Judge {bundle.stage}", "A frozen network that scores images.", SYNTHETIC_NOTICE, "")
    for section in (
        Section("Metrics", [metric_table(metrics)]),
        curves_section(_training_log(bundle)),
        dataset_section(dataset.manifest),
        provenance_section(
            _facts(dataset, config), bundles={bundle.stage: bundle.checksum}, config=bundle.config
        ),
        limits_section(),
    ):
        report.add(section)
    return as_json(metrics), report


def _scored(dataset: Dataset, config: EvaluateConfig) -> Batch:
    """The studies that are scored, with all that is known of them."""
    return _studies(dataset, config.split, config.studies, masks=dataset.manifest.mask_names, reports=True)


def _others(dataset: Dataset, split: str, limit: int, config: EvaluateConfig) -> Batch | None:
    """Studies to compare with; ``None`` where the split is empty, or is the one that is scored."""
    return _studies(dataset, split, limit) if dataset.rows(split) and split != config.split else None


def _prevalence(dataset: Dataset) -> dict[str, float] | None:
    if not dataset.rows("train"):
        return None
    names = dataset.manifest.finding_names
    return dict(zip(names, dataset.manifest.prevalence(names).tolist(), strict=True))


def _studies(
    dataset: Dataset, split: str, limit: int, *, masks: tuple[str, ...] = (), reports: bool = False
) -> Batch:
    config = LoaderConfig()
    plan = make_plan(dataset, split, config, seed=None, masks=masks)
    batches = stream(dataset, plan, config, batch_size=256, masks=masks, reports=reports, endless=False)
    return gather((batch for batch, _ in batches), limit=limit)


def _require_scorers(bundle: Bundle, scorers: Sequence[Bundle]) -> None:
    """Raises unless the judges can score this generator, each in a role of its own and apart from it."""
    if scorers and bundle.method == "predictors":
        raise BundleError(
            f"{bundle.location.uri} is itself a judge ({bundle.stage}), which no judge scores: leave out "
            "--judge."
        )
    stages = [scorer.stage for scorer in scorers]
    for scorer in scorers:
        if scorer.stage not in SCORING or stages.count(scorer.stage) > 1:
            raise BundleError(
                f"--judge {scorer.location.uri} is of stage {scorer.stage}. One judge of each of these can "
                f"score a generator: {', '.join(SCORING)}."
            )
    for role, parent, opened in ancestors(bundle):
        for scorer in scorers:
            require_apart(scorer, role, parent, opened)


def _require_size(dataset: Dataset, *bundles: Bundle) -> None:
    for bundle in bundles:
        size = bundle.metadata.get("image_size")
        if size != dataset.manifest.image_size:
            raise EvaluationError(
                f"{bundle.location.uri} works on images of {size} px; those of {dataset.location.uri} have "
                f"{dataset.manifest.image_size} px. Ingest the data with image_size={size}."
            )


def _unchecked(bundle: Bundle) -> list[str]:
    """What the report says of judges of the losses that are gone."""
    gone = sorted({role for role, _, opened in ancestors(bundle) if opened is None})
    if not gone:
        return []
    return [
        f"Whether the judges that score trained apart from the generator's {', '.join(gone)} was not "
        "checked, as the bundle is no longer where it was: it may have seen the same patients, which would "
        "flatter."
    ]


def _facts(dataset: Dataset, config: EvaluateConfig) -> dict[str, str]:
    return {
        "Code version": code_version(),
        "Data": f"{dataset.manifest.source}, split {config.split}",
        "Data fingerprint": dataset.manifest.fingerprint,
        "Seed": str(config.seed),
    }


def _training_log(bundle: Bundle) -> list[Mapping[str, Any]]:
    """The lines that the training left beside its bundle; none if the bundle was moved away from them."""
    folder = bundle.location.uri.rsplit("/", 1)[0]
    try:
        text = (resolve(folder) / "metrics.jsonl").read_bytes().decode()
    except MissingError:
        return []
    return [json.loads(line) for line in text.splitlines()]
