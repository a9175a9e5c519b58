"""The whole report of a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterray.data.dataset import DatasetManifest
from counterray.evaluation.generator import Evaluation
from counterray.evaluation.metric import Metric
from counterray.evaluation.metric_sections import judges_section, key_numbers_section, metrics_section
from counterray.evaluation.report import Cell, Report
from counterray.evaluation.sections import (
    counterfactual_section,
    curves_section,
    dataset_section,
    limits_section,
    provenance_section,
    reconstruction_section,
)
from counterray.evaluation.text_condition import TextCondition
from counterray.evaluation.wording import SYNTHETIC_NOTICE


def generator_report(
    evaluation: Evaluation,
    *,
    title: str,
    subtitle: str,
    manifest: DatasetManifest,
    facts: Mapping[str, Cell],
    bundles: Mapping[str, str],
    config: Mapping[str, Any],
    judges: Mapping[str, Sequence[Metric]] | None = None,
    records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    limits: Sequence[str] = (),
    condition: TextCondition | None = None,
) -> Report:
    """The whole report of a generator.

    Args:
        evaluation: From `evaluate_counterfactuals`.
        title: Heading.
        subtitle: What it is, in a sentence.
        manifest: Of the dataset whose images were edited.
        facts: Code version, data fingerprint, seeds and the like.
        bundles: Role to checksum, of the generator and the judges.
        config: The generator's resolved configuration.
        judges: Name of each judge to its metrics on data it was not trained on.
        records: Name of each stage to the lines of its training log.
        limits: Further paragraphs on what the numbers do not say.
        condition: What the generator was told, where it reads words.
    """
    report = Report(title, subtitle, SYNTHETIC_NOTICE, f"Made by counterray {facts.get('Code version', '')}.")
    made = evaluation.counterfactuals
    for section in (
        key_numbers_section(evaluation),
        counterfactual_section(made, condition=condition),
        metrics_section(evaluation),
        reconstruction_section(made),
        judges_section(judges or {}),
        *(curves_section(lines, title=f"Training: {stage}") for stage, lines in (records or {}).items()),
        dataset_section(manifest),
        provenance_section(facts, bundles=bundles, config=config),
        limits_section(*limits),
    ):
        report.add(section)
    return report
