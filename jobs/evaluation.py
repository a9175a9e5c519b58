"""From bundles and a dataset to metrics and a report: what the jobs ``evaluate`` and ``demo`` share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from counterray.bundle import Bundle, BundleError, code_version, open_bundle
from counterray.config import Config
from counterray.data.batching import LoaderConfig
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.loader import make_plan, stream
from counterray.data.study import Batch
from counterray.evaluation.generator import Judges, evaluate_counterfactuals, shuffled_donors
from counterray.evaluation.judge import judge_metrics, open_judge
from counterray.evaluation.metric import as_json
from counterray.evaluation.opening import exact_counterfactuals, gather, open_editor
from counterray.evaluation.report import Report, Section
from counterray.evaluation.sections import (
    curves_section,
    dataset_section,
    generator_report,
    limits_section,
    metric_table,
    provenance_section,
)
from counterray.evaluation.wording import SYNTHETIC_NOTICE
from counterray.storage import MissingError, StorageError, resolve

logger = logging.getLogger(__name__)

SCORING = ("classifier", "segmentor", "identity_encoder")
"""Stages whose bundles can score a generator."""


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
    cycles: tuple[int, ...] = (1, 10)
    """Numbers of repetitions for composition and reversibility."""
    minimum_positives: int = Field(default=50, ge=2)
    """Positive studies that a finding needs to count in macro averages."""


def evaluate(
    config: EvaluateConfig, *, model: str, data: str, out: str, judges: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Scores a bundle, writes ``report.html`` and ``metrics.json`` to ``out``; returns the job's result.

    Raises:
        BundleError: If a bundle cannot be trusted, or cannot score.
        EvaluationError: If the dataset does not have what the bundle is scored on.
        StorageError: If something cannot be read or written.
    """
    dataset, bundle = open_dataset(data), open_bundle(model)
    scorers = [open_bundle(uri) for uri in judges]
    _require_scorers(bundle, scorers)
    try:
        batch = _studies(dataset, config.split, config.studies, masks=dataset.manifest.mask_names)
        if bundle.method == "predictors":
            metrics, report = _judge_report(bundle, dataset, batch, config)
        else:
            metrics, report = _generator_report(bundle, scorers, dataset, batch, config)
    except ValueError as error:
        raise EvaluationError(
            f"{bundle.location.uri} cannot be scored on {dataset.location.uri}: {error}"
        ) from error
    place = resolve(out)
    (place / "metrics.json").write_json(metrics)
    (place / "report.html").write_bytes(report.render().encode())
    values = {name: metric["value"] for name, metric in metrics.items()}
    return {"metrics": values, "report": (place / "report.html").uri}


def _generator_report(
    bundle: Bundle, scorers: Sequence[Bundle], dataset: Dataset, batch: Batch, config: EvaluateConfig
) -> tuple[dict[str, Any], Report]:
    judges = {scorer.stage: open_judge(scorer) for scorer in scorers}
    evaluation = evaluate_counterfactuals(
        open_editor(bundle),
        batch,
        shuffled_donors(batch, seed=config.seed),
        judges=Judges(
            classifier=judges.get("classifier"),
            segmentor=judges.get("segmentor"),
            identity=judges.get("identity_encoder"),
        ),
        exact=exact_counterfactuals(dataset.manifest),
        training=_studies(dataset, "train", 4 * config.studies),
        cycles=config.cycles,
        minimum_positives=config.minimum_positives,
        seed=config.seed,
    )
    by_judge = {
        scorer.stage: judge_metrics(scorer, batch, minimum_positives=config.minimum_positives)
        for scorer in scorers
    }
    report = generator_report(
        evaluation,
        title=f"Counterfactuals of {bundle.stage}",
        subtitle="This patient with that patient's pathology, scored by judges that trained apart.",
        manifest=dataset.manifest,
        facts=_facts(dataset, config),
        bundles={bundle.stage: bundle.checksum, **{f"judge {s.stage}": s.checksum for s in scorers}},
        config=bundle.config,
        judges=by_judge,
        records={source.stage: _training_log(source) for source in (bundle, *scorers)},
    )
    values = as_json(evaluation.metrics)
    for stage, rows in by_judge.items():
        values |= {f"judge.{stage}.{name}": metric for name, metric in as_json(rows).items()}
    return values, report


def _judge_report(
    bundle: Bundle, dataset: Dataset, batch: Batch, config: EvaluateConfig
) -> tuple[dict[str, Any], Report]:
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


def _studies(dataset: Dataset, split: str, limit: int, masks: tuple[str, ...] = ()) -> Batch:
    config = LoaderConfig()
    plan = make_plan(dataset, split, config, seed=None, masks=masks)
    batches = stream(dataset, plan, config, batch_size=256, masks=masks, endless=False)
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
    for role, parent in bundle.manifest["parents"].items():
        for scorer in scorers:
            _require_apart(scorer, role, parent)


def _require_apart(scorer: Bundle, role: str, parent: Mapping[str, Any]) -> None:
    """Raises if a judge is that of a loss, or saw the same patients with the same seed."""
    same = scorer.checksum == parent["checksum"]
    if not same and scorer.stage == parent["stage"]:
        try:
            trained = open_bundle(parent["uri"]).config
        except (BundleError, StorageError):
            logger.warning("the judge of the loss %r is gone, so its patients cannot be compared", role)
            return
        folds = {scorer.config["loader"]["fold"], trained["loader"]["fold"]}
        same = scorer.config["seed"] == trained["seed"] or len(folds) == 1 or "all" in folds
    if same:
        raise BundleError(
            f"The judge {scorer.location.uri} is not apart from the generator's loss {role!r}, so its scores "
            "would flatter it. Train it with another seed, and the two on loader.fold a and b."
        )


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
