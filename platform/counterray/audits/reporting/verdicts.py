"""Sections that come first: the verdicts in plain words, and whether the generator is fit to give them."""

from __future__ import annotations

from collections.abc import Sequence

from counterray.audits.findings import EffectAudit, PairFinding
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.wording import (
    GATE_QUESTIONS,
    LIMITS,
    VERDICT_MEANINGS,
    VERDICTS,
    direction_sentence,
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
    Missing,
    Section,
    Table,
    Text,
)

SHOWN = 24
"""Rows of a table before the rest is folded."""

_ORDER = {verdict: place for place, verdict in enumerate(VERDICTS)}


def verdicts_section(results: Sequence[AttributeResults]) -> Section:
    """A verdict for each target and attribute, those that ask for action first."""
    audits = [audit for each in results for audit in each.audits]
    rows = sorted(
        (row for audit in audits for row in _verdict_rows(audit)), key=lambda row: _ORDER[row[0]]
    )
    found = [verdict for verdict, _ in rows]
    cards = [Card(text, found.count(verdict), f"of {len(found)}") for verdict, text in VERDICTS.items()]
    columns = ["Classifier, finding", "Attribute and effect", "Verdict", "In plain words", "To settle it"]
    cells = [cells for _, cells in rows]
    refused: list[list[Cell]] = [
        [name, f"{words(audit.attribute)}, {audit.effect} effect", reason]
        for audit in audits
        for name, reason in audit.refused.items()
    ]
    blocks: list[Block] = [
        Cards(cards),
        Text([_closed(audit) for audit in audits], tone="warning"),
        Table(columns, cells[:SHOWN], "Verdicts"),
        Table(columns, cells[SHOWN:], f"{len(cells) - SHOWN} more verdicts", folded=True),
        Table(["Classifier, finding", "Attribute and effect", "Not audited, because"], refused, "Left out"),
        KeyValues(list(VERDICT_MEANINGS.items()), caption="What the verdicts mean", folded=True),
    ]
    return Section(
        "Verdicts",
        blocks,
        "Does changing nothing but the attribute change what the classifier says of the same patient? Over "
        "several pairs of levels the sentence is about the pair that decides.",
    )


def gates_section(results: AttributeResults) -> Section:
    """Every gate: what was measured, what was asked for, by whom, and what would open a closed one."""
    blocks: list[Block] = []
    for audit in results.audits:
        rows: list[list[Cell]] = [
            [
                f"{words(gate.name)}: {GATE_QUESTIONS[gate.name]}",
                Missing(gate.reason if gate.state != "open" else "") if gate.value != gate.value else gate.value,
                f"{'at least' if gate.better == 'higher' else 'at most'} {gate.limit:g}",
                gate.state,
                gate.judge or "no judge",
                gate.reason or gate.note,
                gate.remedy,
            ]
            for gate in audit.gates
        ]
        columns = ["Gate", "Measured", "Limit", "State", "Judge", "Reason or note", "What would open it"]
        blocks.append(Table(columns, rows, f"Gates of the {audit.effect} effect"))
        waived = [gate.name for gate in audit.gates if gate.state == "waived"]
        if waived:
            names = ", ".join(map(words, waived))
            blocks.append(Text([f"Waived and not measured by this audit: {names}. Read the reason above."]))
    return Section(
        f"{_title(results)}: is the generator fit to say?",
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


def _closed(audit: EffectAudit) -> str:
    closed = [gate for gate in audit.gates if gate.state == "closed"]
    if not closed:
        return ""
    return f"Nothing can be said about {words(audit.attribute)} ({audit.effect} effect). {gate_sentence(closed)}"


def _title(results: AttributeResults) -> str:
    text = words(results.attribute)
    return text[:1].upper() + text[1:]
