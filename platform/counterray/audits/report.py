"""The report of an audit: one self-contained page, the same numbers as JSON, and a summary in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.audits.errors import AuditError
from counterray.audits.reporting.doses import DoseResults, doses_section
from counterray.audits.reporting.effects import effects_section, flips_section
from counterray.audits.reporting.group_sections import (
    associations_section,
    causes_section,
    performance_section,
)
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.summary import markdown_summary
from counterray.audits.reporting.verdicts import (
    gates_section,
    limits_section,
    refused_section,
    verdicts_section,
)
from counterray.audits.reporting.wording import LIMITS, refused_targets, words
from counterray.evaluation.report import Cell, Missing, Report
from counterray.evaluation.sections import provenance_section
from counterray.evaluation.wording import SYNTHETIC_NOTICE

FORMAT = 1
"""Version of the JSON's layout."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything that one audit of one or more classifiers has to say.

    Attributes:
        title: Heading.
        results: One entry for each attribute with levels.
        doses: One entry for each continuous attribute.
        refused: Kind (``classifiers``, ``attributes``, ``targets``) to the name of each that was not audited,
            to the reason; targets that ``results`` refuse are added.
        warnings: What a reader must know before the verdicts.
        facts: Code version, data fingerprint, generator, seeds and the like; no identifiers.
        bundles: Role of each network (classifiers, generator, judges) to its checksum.
        config: The resolved configuration of the audit.
        limits: Further paragraphs on what the numbers do not say.

    Raises:
        AuditError: If there is nothing to report, or there are two results of one attribute.
    """

    title: str
    results: Sequence[AttributeResults] = ()
    doses: Sequence[DoseResults] = ()
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    facts: Mapping[str, Cell] = field(default_factory=dict)
    bundles: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[str] = ()

    def __post_init__(self) -> None:
        attributes = self._attributes
        twice = sorted({name for name in attributes if attributes.count(name) > 1})
        if not attributes and not any(self.refused.values()):
            raise AuditError("A report needs the results of one attribute or more, or what was refused.")
        if twice:
            raise AuditError(
                f"Attribute {twice[0]!r} has {attributes.count(twice[0])} results; give its total and direct "
                "audits as one."
            )

    @property
    def _attributes(self) -> list[str]:
        return [each.attribute for each in self.results] + [each.attribute for each in self.doses]

    @property
    def left_out(self) -> dict[str, dict[str, str]]:
        """``refused``, with the targets that the audits of ``results`` and ``doses`` refuse."""
        found = {kind: dict(reasons) for kind, reasons in self.refused.items()}
        audits = [audit for each in self.results for audit in each.audits]
        targets = refused_targets([*audits, *(each.audit for each in self.doses)])
        if targets:
            found["targets"] = {**found.get("targets", {}), **targets}
        return found

    @property
    def subtitle(self) -> str:
        """What was audited, in a sentence."""
        if not self._attributes:
            return "Nothing could be audited."
        audits = [audit for each in self.results for audit in each.audits]
        targets = {finding.target for audit in audits for finding in audit.findings}
        targets |= {finding.target for each in self.doses for finding in each.audit.findings}
        classifiers = len({target.classifier for target in targets})
        findings = len({target.finding for target in targets})
        attributes = ", ".join(map(words, self._attributes))
        images = max([audit.individuals for audit in audits] + [each.individuals for each in self.doses])
        return (
            f"{_plural(classifiers, 'classifier')}, {_plural(findings, 'finding')}, audited for "
            f"{attributes} with counterfactuals of {images} images."
        )

    def page(self) -> Report:
        """The page: verdicts first, then each attribute, then where it comes from and what it cannot say."""
        footer = f"Made by counterray {self.facts.get('Code version', '')}."
        report = Report(self.title, self.subtitle, SYNTHETIC_NOTICE, footer)
        if self._attributes:
            report.add(verdicts_section(self.results, self.doses))
        report.add(refused_section(self.left_out, self.warnings))
        for each in self.results:
            title = _heading(each.attribute)
            gates = {f"Gates of the {audit.effect} effect": audit.gates for audit in each.audits}
            report.add(gates_section(gates, title=title))
            report.add(effects_section(each, title=title))
            report.add(flips_section(each, title=title))
            report.add(performance_section(each, title=title))
            report.add(associations_section(each, title=title))
            report.add(causes_section(each, title=title))
        for dose in self.doses:
            title = _heading(dose.attribute)
            report.add(gates_section({"Gates": dose.audit.gates}, title=title))
            report.add(doses_section(dose, title=title))
        report.add(limits_section(self.limits))
        report.add(provenance_section(self._facts(), bundles=self.bundles, config=self._settings()))
        return report

    def html(self) -> str:
        """The page as HTML: nothing is loaded, there is no script, every value is escaped."""
        return self.page().render()

    def as_json(self) -> dict[str, Any]:
        """Plain values, ``None`` for what has no number: every number of the page and more."""
        return {
            "format": FORMAT,
            "title": self.title,
            "subtitle": self.subtitle,
            "attributes": [each.as_json() for each in self.results],
            "doses": [each.as_json() for each in self.doses],
            "refused": self.left_out,
            "warnings": list(self.warnings),
            "facts": {name: _plain(value) for name, value in self.facts.items()},
            "bundles": dict(self.bundles),
            "config": dict(self.config),
            "limits": [*LIMITS, *self.limits],
        }

    def markdown(self) -> str:
        """A summary for a model card."""
        return markdown_summary(
            self.results,
            self.doses,
            title=self.title,
            refused=self.left_out,
            warnings=self.warnings,
            facts=self._facts(),
            bundles=self.bundles,
            limits=self.limits,
        )

    def _facts(self) -> dict[str, Cell]:
        """The facts, and of each classifier where it is cut."""
        cuts = {
            f"Thresholds of {name}": ", ".join(
                f"{words(finding)} {cut:.3g}" for finding, cut in found.items()
            )
            for name, found in self._thresholds().items()
        }
        return {**self.facts, **cuts}

    def _thresholds(self) -> dict[str, dict[str, float]]:
        """Classifier to finding to threshold."""
        found: dict[str, dict[str, float]] = {}
        audited = [each for one in self.results for audit in one.audits for each in audit.findings]
        for target in [each.target for each in audited] + [
            e.target for d in self.doses for e in d.audit.findings
        ]:
            found.setdefault(target.classifier, {})[target.finding] = target.threshold
        return found

    def _settings(self) -> dict[str, Any]:
        """The configuration, and how each attribute was audited, with seeds."""
        audits = {
            f"{each.attribute} ({audit.effect} effect)": audit.config.model_dump(mode="json")
            for each in self.results
            for audit in each.audits
        }
        audits |= {each.attribute: each.audit.config.model_dump(mode="json") for each in self.doses}
        return {**self.config, **audits}


def _plain(value: Cell) -> str | float | int | dict[str, str] | None:
    if isinstance(value, Missing):
        return {"missing": value.reason}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _heading(attribute: str) -> str:
    text = words(attribute)
    return text[:1].upper() + text[1:]


def verdicts_of(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Attribute to target to verdict, of what `AuditReport.as_json` made; of two effects the first one's."""
    return {each["attribute"]: dict(each["audits"][0]["verdicts"]) for each in report["attributes"]}
