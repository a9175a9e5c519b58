"""How well what a refiner reads agrees with label columns, finding by finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from counterray.data.labels import FINDINGS, UncertaintyPolicy

_COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives", "uncertain")


@dataclass(frozen=True, kw_only=True)
class FindingAgreement:
    """One finding's counts over the reports whose label is known and certain.

    Attributes:
        finding: Its name.
        true_positives: Read as present and labelled present.
        false_positives: Read as present and labelled absent.
        false_negatives: Not read as present and labelled present.
        true_negatives: Not read as present and labelled absent.
        uncertain: Of all these, reports that speak of it in doubt.
    """

    finding: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    uncertain: int

    @property
    def labelled_present(self) -> int:
        """Reports whose label says present."""
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float:
        """Share of what is read as present that is labelled so; higher is better; NaN where nothing is."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of what is labelled present that is read so; higher is better; NaN where nothing is."""
        return _ratio(self.true_positives, self.labelled_present)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), in [0, 1], higher is better; NaN where nothing is read or labelled."""
        return _ratio(
            2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives
        )


@dataclass(frozen=True)
class Agreement:
    """The table.

    Attributes:
        findings: One for each finding with a label, the commonest (by labels) first.
        reports: Number of reports compared.
    """

    findings: tuple[FindingAgreement, ...]
    reports: int

    def macro_f1(self, commonest: int | None = None) -> float:
        """Mean F1 over findings that are labelled present at least once; higher is better.

        ``no_finding`` is left out: it is the absence of the others, and far commoner than any.

        Args:
            commonest: Only this many, the commonest by labels; ``None`` for all.
        """
        scored = [row for row in self.findings if row.labelled_present and row.finding != "no_finding"]
        values = [row.f1 for row in scored[:commonest]]
        return _ratio(sum(values), len(values))

    def plain(self) -> dict[str, object]:
        """The table as JSON values; a ratio over nothing is null."""
        return {
            "reports": self.reports,
            "macro_f1": _null(self.macro_f1()),
            "macro_f1_ten_commonest": _null(self.macro_f1(10)),
            "findings": [
                {item.name: getattr(row, item.name) for item in fields(row)}
                | {name: _null(getattr(row, name)) for name in ("precision", "recall", "f1")}
                for row in self.findings
            ],
        }

    def text(self) -> str:
        """The table for a terminal, commonest finding first."""
        lines = [f"{'finding':28s}{'present':>8s}{'precision':>11s}{'recall':>8s}{'F1':>7s}"]
        for row in self.findings:
            numbers = f"{row.precision:11.3f}{row.recall:8.3f}{row.f1:7.3f}".replace("nan", "  -")
            lines.append(f"{row.finding:28s}{row.labelled_present:8d}{numbers}")
        lines.append(f"{'macro F1, ten commonest':28s}{self.macro_f1(10):34.3f}")
        return "\n".join(lines)


def combined(parts: Iterable[Agreement]) -> Agreement:
    """The table over several sets of reports, from their tables."""
    reports, sums = 0, {name: dict.fromkeys(_COUNTS, 0) for name in FINDINGS}
    for part in parts:
        reports += part.reports
        for row in part.findings:
            for name in _COUNTS:
                sums[row.finding][name] += getattr(row, name)
    return _table([FindingAgreement(finding=name, **counts) for name, counts in sums.items()], reports)


def from_plain(plain: Mapping[str, Any]) -> Agreement:
    """The table whose `Agreement.plain` this is."""
    names = ("finding", *_COUNTS)
    rows = [FindingAgreement(**{name: row[name] for name in names}) for row in plain["findings"]]
    return Agreement(tuple(rows), plain["reports"])


def agreement(
    predicted: Sequence[Mapping[str, int]],
    labels: Sequence[Mapping[str, int | None]],
    *,
    uncertain: UncertaintyPolicy = "zeros",
) -> Agreement:
    """Compares what was read of reports with their labels.

    A label that is unknown or uncertain does not count. A finding that a report does not mention counts as
    read absent: radiologists do not list what is not there.

    Args:
        predicted: For each report, finding to 1, 0 or -1, as ``Refined.findings`` gives it.
        labels: For each report, finding to 1, 0, -1 or ``None``.
        uncertain: What a reading in doubt counts as: ``zeros`` as absent, ``ones`` as present, ``ignore``
            leaves the report out for that finding.

    Raises:
        ValueError: If there are not as many labels as readings, or ``uncertain`` is none of the above.
    """
    if len(predicted) != len(labels):
        raise ValueError(f"There are {len(predicted)} readings and {len(labels)} sets of labels.")
    if uncertain not in ("zeros", "ones", "ignore"):
        raise ValueError(f"Unknown policy uncertain={uncertain!r}. Available: zeros, ones, ignore.")
    rows = [_finding(name, predicted, labels, uncertain) for name in FINDINGS]
    return _table(rows, len(labels))


def _table(rows: Sequence[FindingAgreement], reports: int) -> Agreement:
    known = [row for row in rows if row.labelled_present + row.false_positives + row.true_negatives]
    return Agreement(tuple(sorted(known, key=lambda row: -row.labelled_present)), reports)


def _finding(
    name: str,
    predicted: Sequence[Mapping[str, int]],
    labels: Sequence[Mapping[str, int | None]],
    uncertain: UncertaintyPolicy,
) -> FindingAgreement:
    counts = {(read, label): 0 for read in (False, True) for label in (0, 1)}
    doubtful = 0
    for reading, stated in zip(predicted, labels, strict=True):
        value, label = reading.get(name), stated.get(name)
        if label not in (0, 1) or (value == -1 and uncertain == "ignore"):
            continue
        doubtful += value == -1
        counts[value == 1 or (value == -1 and uncertain == "ones"), label] += 1
    return FindingAgreement(
        finding=name,
        true_positives=counts[True, 1],
        false_positives=counts[True, 0],
        false_negatives=counts[False, 1],
        true_negatives=counts[False, 0],
        uncertain=doubtful,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _null(value: float) -> float | None:
    return None if value != value else round(value, 4)
