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
from counterray.evaluation.metric import Metric
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
from counterray.storage import MissingError, resolve

logger = logging.getLogger(__name__)

SCORING = ("classifier", "segmentor", "identity_encoder")
"""Stages whose bundles can score a generator."""


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
        StorageError: If something cannot be read or written.
    """
    dataset, bundle = open_dataset(data), open_bundle(model)
    scorers = [open_bundle(uri) for uri in judges]
    _refuse_shared_judges(bundle, scorers)
    batch = _studies(dataset, config.split, config.studies, masks=dataset.manifest.mask_names)
    if bundle.method == "predictors":
        metrics, report = _judge_report(bundle, dataset, batch, config)
    else:
        metrics, report = _generator_report(bundle, scorers, dataset, batch, config)
    place = resolve(out)
    (place / "metrics.json").write_json({metric.key: metric.as_json() for metric in metrics})
    (place / "report.html").write_bytes(report.render().encode())
    return {
        "metrics": {metric.key: metric.as_json()["value"] for metric in metrics},
        "report": (place / "report.html").uri,
    }


def _generator_report(
    bundle: Bundle, scorers: Sequence[Bundle], dataset: Dataset, batch: Batch, config: EvaluateConfig
) -> tuple[list[Metric], Report]:
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
    return [*evaluation.metrics, *(metric for rows in by_judge.values() for metric in rows)], report


def _judge_report(
    bundle: Bundle, dataset: Dataset, batch: Batch, config: EvaluateConfig
) -> tuple[list[Metric], Report]:
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
    return metrics, report


def _studies(dataset: Dataset, split: str, limit: int, masks: tuple[str, ...] = ()) -> Batch:
    config = LoaderConfig()
    plan = make_plan(dataset, split, config, seed=None, masks=masks)
    batches = stream(dataset, plan, config, batch_size=256, masks=masks, endless=False)
    return gather((batch for batch, _ in batches), limit=limit)


def _refuse_shared_judges(bundle: Bundle, scorers: Sequence[Bundle]) -> None:
    used = {parent["checksum"] for parent in bundle.manifest["parents"].values()}
    for scorer in scorers:
        if scorer.stage not in SCORING:
            raise BundleError(
                f"The bundle at {scorer.location.uri} is of stage {scorer.stage}, which does not score "
                f"generators. Those that do: {', '.join(SCORING)}."
            )
        if scorer.checksum in used:
            raise BundleError(
                f"The judge at {scorer.location.uri} took part in the losses of this generator, so its "
                "scores would flatter it. Train another one: another seed, and loader.fold b instead of a."
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
