"""What a counterfactual audit found, as data: numbers, p-values, verdicts and their sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from counterray.audits.gates import Gate
from counterray.audits.scores import PlaceboUnit, Target
from counterray.audits.settings import AuditConfig
from counterray.audits.verdicts import Verdict, gate_sentence, overall_verdict


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; NaN where there is nothing to estimate it from."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Plain values, with ``None`` for NaN."""
        return {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}


@dataclass(frozen=True, kw_only=True)
class PairFinding:
    """What changing the attribute from one level to another does to one target.

    Attributes:
        target: Classifier, finding and threshold.
        first: The level a.
        second: The level a'.
        verdict: See `Verdict`.
        numbers: Name to estimate, see `summaries`.
        p_value: Of dependence, by the test that the settings choose, uncorrected.
        p_corrected: The same, corrected over all targets and pairs of the attribute.
        p_permutation: By permutation of roles within patients, or of generators.
        p_bootstrap: By resampling patients.
        p_delta: By the one-sided t-test of the mean square; like the bootstrap's NaN for null generators.
        p_equivalence: ``mean_effect``, ``absolute_effect`` and ``flip_rate``; small means within the margin.
        detectable_effect: Smallest excess of ``|τ|`` that is significant, after correction, with the chosen
            power [probability].
        patients_to_detect: Patients to find an excess as large as the margin.
        patients_for_equivalence: Patients to show equivalence, were there no effect.
    """

    target: Target
    first: str
    second: str
    verdict: Verdict
    numbers: Mapping[str, Estimate]
    p_value: float
    p_corrected: float
    p_permutation: float
    p_bootstrap: float
    p_delta: float
    p_equivalence: Mapping[str, float]
    detectable_effect: float
    patients_to_detect: float
    patients_for_equivalence: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "classifier": self.target.classifier,
            "finding": self.target.finding,
            "threshold": self.target.threshold,
            "first": self.first,
            "second": self.second,
            "verdict": self.verdict,
            "numbers": {name: estimate.as_json() for name, estimate in self.numbers.items()},
            "p": {
                "raw": self.p_value,
                "corrected": self.p_corrected,
                "permutation": self.p_permutation,
                "bootstrap": _finite(self.p_bootstrap),
                "delta": _finite(self.p_delta),
                "equivalence": dict(self.p_equivalence),
            },
            "detectable_effect": _finite(self.detectable_effect),
            "patients_to_detect": _finite(self.patients_to_detect),
            "patients_for_equivalence": _finite(self.patients_for_equivalence),
        }


@dataclass(frozen=True, kw_only=True)
class EffectAudit:
    """A counterfactual audit of one attribute.

    Attributes:
        attribute: Its name.
        effect: Whether descendants were updated (``total``) or held (``direct``).
        levels: Names of its levels.
        individuals: N.
        patients: Different ones among them.
        null_interventions: R.
        placebo_unit: What they are.
        findings: One for each target and pair of levels.
        accuracy: Target's name to its expected counterfactual accuracy over changed levels.
        gates: Every gate.
        refused: Name of each target that could not be audited to the reason.
        config: How it was audited.
    """

    attribute: str
    effect: Literal["total", "direct"]
    levels: tuple[str, ...]
    individuals: int
    patients: int
    null_interventions: int
    placebo_unit: PlaceboUnit
    findings: Sequence[PairFinding]
    accuracy: Mapping[str, Estimate]
    gates: Sequence[Gate]
    refused: Mapping[str, str]
    config: AuditConfig

    def verdicts(self) -> dict[str, Verdict]:
        """Target's name to its verdict over all pairs of levels."""
        found: dict[str, list[Verdict]] = {}
        for finding in self.findings:
            found.setdefault(finding.target.name, []).append(finding.verdict)
        return {name: overall_verdict(each) for name, each in found.items()}

    def sentence(self, finding: PairFinding) -> str:
        """The verdict in plain words, with the numbers that it rests on."""
        change = f"changing {self.attribute} from {finding.first} to {finding.second}"
        flips, margin = finding.numbers["flip"], self.config.margins
        seen = (
            f"{change} moves the score by {_number(finding.numbers['absolute'].value)} on average and "
            f"{flips.value:.1%} of decisions (95 % interval {flips.low:.1%} to {flips.high:.1%})"
        )
        match finding.verdict:
            case "cannot_tell":
                closed = [gate for gate in self.gates if gate.state == "closed"]
                return f"Cannot tell. {gate_sentence(closed)}"
            case "invariant":
                worst = max(finding.p_equivalence.values())
                return (
                    f"Invariant within the margins: {seen}; mean effect {margin.mean_effect:g}, |effect| "
                    f"{margin.absolute_effect:g} and flips {margin.flip_rate:.1%} are excluded (p = "
                    f"{_number(worst)}).{self._errors(finding)}"
                )
            case "depends":
                return (
                    f"Depends on {self.attribute}: {seen}, beyond the margins and more than null "
                    f"interventions do (p = {_number(finding.p_corrected)} after correction)."
                    f"{self._errors(finding)}"
                )
            case "inconclusive":
                return f"Inconclusive: {seen}. {self._unsettled(finding)}"

    def _errors(self, finding: PairFinding) -> str:
        """A warning of errors that hit more of the ill, or of the healthy, than the margin lets of all."""
        named = {
            "missed_at_first": f"of those with the finding are missed only as {finding.first}",
            "missed_at_second": f"of those with the finding are missed only as {finding.second}",
            "alarm_at_first": f"of those without it are called only as {finding.first}",
            "alarm_at_second": f"of those without it are called only as {finding.second}",
        }
        found = [
            f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}) {words}"
            for name, words in named.items()
            if (rate := finding.numbers[name]).value > self.config.margins.flip_rate
        ]
        return f" But {' and '.join(found)}." if found else ""

    def _unsettled(self, finding: PairFinding) -> str:
        """Why nothing could be shown, and what would."""
        noise, needed = finding.numbers["placebo"].value, finding.patients_for_equivalence
        more = f"Showing invariance takes about {needed:.0f} patients; there are {self.patients}."
        if math.isinf(needed):
            more = (
                f"Null interventions alone move it by {_number(noise)}: with this generator no number of "
                "patients shows invariance within the margins."
            )
        if finding.p_corrected <= self.config.alpha:
            return (
                f"It moves (p = {_number(finding.p_corrected)} after correction), by less than the margins "
                f"as far as can be estimated, which is not proven. {more}"
            )
        return f"An effect of {_number(finding.detectable_effect)} would have been significant. {more}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "attribute": self.attribute,
            "effect": self.effect,
            "levels": list(self.levels),
            "individuals": self.individuals,
            "patients": self.patients,
            "null_interventions": self.null_interventions,
            "placebo_unit": self.placebo_unit,
            "verdicts": self.verdicts(),
            "findings": [
                {**finding.as_json(), "sentence": self.sentence(finding)} for finding in self.findings
            ],
            "accuracy": {name: estimate.as_json() for name, estimate in self.accuracy.items()},
            "gates": [gate.as_json() for gate in self.gates],
            "refused": dict(self.refused),
            "config": self.config.model_dump(mode="json"),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.2g}"
