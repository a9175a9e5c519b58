"""Sections that come first: the verdicts in plain words, and whether the generator is fit to give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from counterray.audits.findings import EffectAudit, PairFinding
from counterray.audits.gates import Gate
from counterray.audits.reporting.doses import DoseResults, dose_rows
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.wording import (
    GATE_QUESTIONS,
    LIMITS,
    VERDICT_MEANINGS,
    VERDICTS,
    direction_sentence,
    measured,
    settles,
    words,
)
from counterray.audits.verdicts import Verdict, gate_sentence
from counterray.evaluation.report import (
    Block,
    Card,
    Cards,
    Cell,
    KeyValues,
    Section,
    Table,
    Text,
)

SHOWN = 24
"""Rows of a table before the rest is folded."""

_ORDER = {verdict: place for place, verdict in enumerate(VERDICTS)}


def verdicts_section(results: Sequence[AttributeResults], doses: Sequence[DoseResults] = ()) -> Section:
    """A verdict for each target and attribute, those that ask for action first."""
    audits = [audit for each in results for audit in each.audits]
    found_rows = [row for audit in audits for row in _verdict_rows(audit)] + _dose_rows(doses)
    rows = sorted(found_rows, key=lambda row: _ORDER[row[0]])
    found = [verdict for verdict, _ in rows]
    cards = [Card(text, found.count(verdict), f"of {len(found)}") for verdict, text in VERDICTS.items()]
    columns = ["Classifier, finding", "Attribute and effect", "Verdict", "In plain words", "To settle it"]
    cells = [cells for _, cells in rows]
    blocks: list[Block] = [
        Cards(cards),
        Text([*map(_closed, audits), *map(_closed_doses, doses)], tone="warning"),
        Table(columns, cells[:SHOWN], "Verdicts"),
        Table(columns, cells[SHOWN:], f"{len(cells) - SHOWN} more verdicts", folded=True),
        KeyValues(list(VERDICT_MEANINGS.items()), caption="What the verdicts mean", folded=True),
    ]
    return Section(
        "Verdicts",
        blocks,
        "Does changing nothing but the attribute change what the classifier says of the same patient? Over "
        "several pairs of levels the sentence is about the pair that decides.",
    )


def refused_section(refused: Mapping[str, Mapping[str, str]], warnings: Sequence[str]) -> Section:
    """Who and what was not audited, and what speaks against what was; empty where there is neither."""
    rows: list[list[Cell]] = [
        [words(kind), name, reason] for kind, reasons in refused.items() for name, reason in reasons.items()
    ]
    return Section(
        "Left out, and to be known",
        [Text(list(warnings), tone="warning"), Table(["Kind", "Name", "Not audited, because"], rows)],
    )


def gates_section(gates: Mapping[str, Sequence[Gate]], *, title: str) -> Section:
    """Every gate: what was measured, what was asked for, by whom, and what would open a closed one.

    Args:
        gates: Caption of each table to its gates.
        title: Of the attribute.
    """
    blocks: list[Block] = []
    for caption, each in gates.items():
        columns = ["Gate", "Measured", "Limit", "State", "Judge", "Reason or note", "What would open it"]
        blocks.append(Table(columns, [_gate_row(gate) for gate in each], caption))
        waived = [words(gate.name) for gate in each if gate.state == "waived"]
        if waived:
            text = f"Waived: {', '.join(waived)}. Read the reason above."
            blocks.append(Text([text]))
    return Section(
        f"{title}: is the generator fit to say?",
        blocks,
        "Nothing that rests on generated images means anything while one of these is closed.",
    )


def limits_section(limits: Sequence[str]) -> Section:
    """Assumptions and limits, those of this audit last."""
    return Section("Assumptions and limits", [Text([*LIMITS, *limits])])


def deciding(audit: EffectAudit, target: str) -> PairFinding:
    """The pair of levels that a target's overall verdict rests on: of those with it the largest effect."""
    verdict = audit.verdicts()[target]
    found = [each for each in audit.findings if each.target.name == target and each.verdict == verdict]
    return max(found, key=lambda each: each.numbers["absolute"].value)


def _verdict_rows(audit: EffectAudit) -> list[tuple[Verdict, list[Cell]]]:
    rows: list[tuple[Verdict, list[Cell]]] = []
    pairs = len(audit.findings) // max(1, len(audit.verdicts()))
    for target, verdict in audit.verdicts().items():
        finding = deciding(audit, target)
        text = audit.sentence(finding)
        if verdict != "cannot_tell":
            text += f" {direction_sentence(audit, finding)}"
        if pairs > 1:
            text += f" ({pairs} pairs of levels were compared.)"
        about = f"{words(audit.attribute)}, {audit.effect} effect"
        rows.append((verdict, [words(target), about, VERDICTS[verdict], text, settles(finding)]))
    return rows


def _dose_rows(doses: Sequence[DoseResults]) -> list[tuple[Verdict, list[Cell]]]:
    return [
        (
            finding.verdict,
            [
                words(finding.target.name),
                _about_doses(each),
                VERDICTS[finding.verdict],
                each.sentence(finding),
                "",
            ],
        )
        for each, finding in dose_rows(doses)
    ]


def _about_doses(results: DoseResults) -> str:
    return f"{words(results.attribute)}, dose and response"


def _closed(audit: EffectAudit) -> str:
    return _closed_gates(f"{words(audit.attribute)} ({audit.effect} effect)", audit.gates)


def _closed_doses(results: DoseResults) -> str:
    return _closed_gates(words(results.attribute), results.audit.gates)


def _closed_gates(about: str, gates: Sequence[Gate]) -> str:
    closed = [gate for gate in gates if gate.state == "closed"]
    return f"Nothing can be said about {about}. {gate_sentence(closed)}" if closed else ""


def _gate_row(gate: Gate) -> list[Cell]:
    return [
        f"{words(gate.name)}: {GATE_QUESTIONS[gate.name]}",
        measured(gate),
        f"{'at least' if gate.better == 'higher' else 'at most'} {gate.limit:g}",
        gate.state,
        gate.judge or "no judge",
        ". ".join(text for text in (gate.reason, gate.note) if text),
        gate.remedy,
    ]
