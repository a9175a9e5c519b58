"""The audit in Markdown, short enough for a model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from counterray.audits.findings import EffectAudit, Estimate
from counterray.audits.gates import Gate
from counterray.audits.reporting.doses import DoseResults
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.verdicts import deciding
from counterray.audits.reporting.wording import LIMITS, VERDICTS, corrected_over, measured, words
from counterray.evaluation.report import Cell, Missing

_COLUMNS = ("classifier, finding", "change that decides", "verdict", "mean effect", "flips", "p corrected")


def markdown_summary(
    results: Sequence[AttributeResults],
    doses: Sequence[DoseResults] = (),
    *,
    title: str,
    refused: Mapping[str, Mapping[str, str]],
    warnings: Sequence[str],
    facts: Mapping[str, Cell],
    bundles: Mapping[str, str],
    limits: Sequence[str],
) -> str:
    """Verdicts with their numbers, gates, provenance and limits, a table for each attribute and effect."""
    parts = [f"## {_text(title)}", ""]
    for each in results:
        for audit in each.audits:
            parts += [*_attribute(audit), ""]
    for dose in doses:
        parts += [*_dose(dose), ""]
    left_out = [
        f"- Not audited: {_text(name)}: {_text(reason)}"
        for reasons in refused.values()
        for name, reason in reasons.items()
    ]
    if left_out or warnings:
        parts += ["### Left out, and to be known", "", *left_out]
        parts += [*(f"- {_text(warning)}" for warning in warnings), ""]
    parts += ["### Provenance of the audit", ""]
    parts += [f"- {_text(name)}: {_cell(value)}" for name, value in facts.items()]
    parts += [f"- {_text(role)}: `{checksum}`" for role, checksum in bundles.items()]
    parts += ["", "### Limits of the audit", "", *(f"- {_text(limit)}" for limit in (*LIMITS, *limits))]
    return "\n".join(parts) + "\n"


def _attribute(audit: EffectAudit) -> list[str]:
    config = audit.config
    lines = [
        f"### {_text(words(audit.attribute))}, {audit.effect} effect",
        "",
        f"{audit.individuals} images of {audit.patients} patients; levels {_text(', '.join(audit.levels))}. "
        f"Margins: mean effect {config.margins.mean_effect:g}, |effect| {config.margins.absolute_effect:g}, "
        f"flips {config.margins.flip_rate:.1%}; level {config.alpha:g}, corrected by "
        f"{words(config.correction)} over {corrected_over(len(audit.findings))}. Intervals are 95 %.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    for target, verdict in audit.verdicts().items():
        finding = deciding(audit, target)
        told = verdict != "cannot_tell"
        cells = (
            _text(words(target)),
            _text(f"{finding.first} → {finding.second}"),
            VERDICTS[verdict],
            _estimate(finding.numbers["mean"]) if told else "–",
            _estimate(finding.numbers["flip"], percent=True) if told else "–",
            f"{finding.p_corrected:.3g}" if told else "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *_gates(audit.gates)]


def _dose(results: DoseResults) -> list[str]:
    audit = results.audit
    lines = [
        f"### {_text(words(audit.attribute))}, dose and response",
        "",
        f"{results.individuals} images of {results.patients} patients.",
        "",
    ]
    lines += [
        f"- {_text(words(each.target.name))}: {VERDICTS[each.verdict]}. {_text(results.sentence(each))}"
        for each in audit.findings
    ]
    lines += [f"- {_text(name)}: Not audited: {_text(why)}" for name, why in audit.refused.items()]
    return [*lines, *_gates(audit.gates)]


def _gates(gates: Sequence[Gate]) -> list[str]:
    lines = ["", "Validity gates of the generator:", ""]
    for gate in gates:
        limit = f"{'at least' if gate.better == 'higher' else 'at most'} {gate.limit:g}"
        judge = _text(gate.judge or "none")
        line = f"- {words(gate.name)}: {gate.state}, {measured(gate)} ({limit}; judge: {judge})"
        lines.append(line + (f"; {_text(gate.reason)}" if gate.reason else ""))
        if gate.remedy:
            lines.append(f"  - to open it: {_text(gate.remedy)}")
    return lines


def _estimate(number: Estimate, *, percent: bool = False) -> str:
    if math.isnan(number.value):
        return "–"
    if percent:
        return f"{number.value:.1%} ({number.low:.1%} to {number.high:.1%})"
    return f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})"


def _cell(value: Cell) -> str:
    if value is None or isinstance(value, Missing):
        return "not available" if value is None else f"not available: {_text(value.reason)}"
    return _text(str(value))


def _text(text: str) -> str:
    """Words that stay words in Markdown: no new cell, line, tag or link."""
    plain = " ".join(text.split())
    for sign in "\\`*_[]<>|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
