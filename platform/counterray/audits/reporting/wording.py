"""The words of an audit's report: what its numbers ask, mean and do not say."""

from __future__ import annotations

import math
from collections.abc import Iterable

from counterray.audits.dose_response import DoseAudit
from counterray.audits.findings import EffectAudit, Estimate, PairFinding
from counterray.audits.gates import Gate, GateName
from counterray.audits.verdicts import Verdict
from counterray.evaluation.report import Cell, Missing, format_number

VERDICTS: dict[Verdict, str] = {
    "depends": "Depends on it",
    "cannot_tell": "Cannot tell",
    "inconclusive": "Inconclusive",
    "invariant": "Invariant within the margins",
}
"""Verdict to its words, the one that asks for action first."""

VERDICT_MEANINGS: dict[str, str] = {
    "Depends on it": "Changing nothing but the attribute moves the score more than repainting the same image "
    "does, and the effect is not shown to lie within the margins.",
    "Invariant within the margins": "The mean effect, the mean of |effect| and the flip rate are all shown "
    "to lie below the margins that were set before the audit. A large p-value alone never earns it.",
    "Inconclusive": "Neither a dependence nor its absence could be shown with so many patients. It is not an "
    "acquittal.",
    "Cannot tell": "A validity gate is closed: the images that the verdict would rest on are not fit for it.",
}

GATE_QUESTIONS: dict[GateName, str] = {
    "effectiveness": "Does an independent judge read the level or dose that was asked for? Share of images",
    "composition": "Does an image stay as it is when nothing is asked? Mean change, share of the grey range",
    "off_target": "Do findings and attributes that should stay, stay? Mean change of probability",
    "identity": "Is it still the same patient? Cosine similarity of identity features",
    "judge_auroc": "Can the attribute's judge read real images? AUROC, or share of pairs in the right order",
}

TESTS: dict[str, str] = {
    "demographic_parity": "Demographic parity",
    "equal_opportunity": "Equal opportunity",
    "equalised_odds": "Equalised odds",
    "cit_lr": "CIT-LR",
    "cit_lr_orthogonal": "CIT-LR, orthogonalised",
}

WHY_TESTS_DISAGREE = (
    "Demographic parity, equal opportunity and equalised odds compare groups of different people. Groups may "
    "differ because they are differently ill, older or imaged elsewhere, so a gap need not mean that the "
    "classifier looks at the attribute; and equal rates can hide a classifier that moves some patients up "
    "and others down.",
    "CIT-LR asks whether predictions still vary with the attribute once a representation of the image is "
    "given. It needs a representation that is independent of the attribute and blocks all other paths, which "
    "is assumed and not tested, and it knows no effect of any single patient.",
    "The counterfactual audit changes the attribute of one and the same patient, so other differences "
    "between groups cannot explain what it finds; it is worth what its generator is, as the gates test.",
)

LIMITS = (
    "A counterfactual image says what a model believes would be seen. On simulated radiographs that belief "
    "can be compared with the truth; on real ones there is no truth to compare with, and open gates are "
    "evidence, not proof.",
    "Every number that names a judge is that network's opinion, not a radiologist's, and is comparable only "
    "with numbers of the same judge (name and checksum).",
    "Intervals are 95 % and take patients, not images, as independent. They cover the choice of audited "
    "patients, not the choice of the generator's training seed, the site or the scanner.",
    "The audit assumes that the causal graph is right as stated, that the patient's own noise was abducted "
    "correctly, and that the audited patients resemble those for whom the classifier is to be used.",
    "A learned generator that makes the same image again and again has null interventions that change "
    "nothing. Any trace that it leaves on what should stay is then significant and would be taken for the "
    "classifier's doing: what bounds it are the gate off target and the margins, not the p-value.",
    "The correction for many tests is made within each attribute and effect, not over several of them: with "
    "k attributes the chance of any false “depends” is up to k times the level.",
    "“Invariant” is a statement about these margins, this threshold, these findings and these levels. An "
    "effect within the margins may still matter where decisions are many.",
    "Individuals that the classifier was trained on make it look more stable than it is; audit on others.",
)


def words(name: str) -> str:
    """A snake-case name for reading, as it stands inside a sentence."""
    return name.replace("_", " ")


def corrected_over(tests: int) -> str:
    """What the p-values of an attribute are corrected over, given the number of its tests."""
    return f"the {tests} tests of this attribute (classifiers × findings × pairs of levels)"


def refused_targets(audits: Iterable[EffectAudit | DoseAudit]) -> dict[str, str]:
    """Name of each target that an audit refused, to the reason and the attributes that it was refused for."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for audit in audits:
        for name, reason in audit.refused.items():
            attributes = reasons.setdefault(name, {}).setdefault(reason, [])
            if audit.attribute not in attributes:
                attributes.append(audit.attribute)
    told = {
        name: [f"For {', '.join(map(words, attributes))}: {reason}" for reason, attributes in each.items()]
        for name, each in reasons.items()
    }
    return {name: " ".join(each) for name, each in told.items()}


def spread(estimate: Estimate | None, *, missing: str, percent: bool = False) -> Cell:
    """A number with its 95 % interval for reading.

    Args:
        estimate: The number.
        missing: Why there is none, where it is ``None`` or NaN.
        percent: Whether it is a share, shown in percent.
    """
    if estimate is None or math.isnan(estimate.value):
        return Missing(missing)
    shown = _percent if percent else format_number
    unit = " %" if percent else ""
    if math.isnan(estimate.low):
        return f"{shown(estimate.value)}{unit} (no interval)"
    return f"{shown(estimate.value)}{unit} ({shown(estimate.low)} to {shown(estimate.high)})"


def measured(gate: Gate) -> str:
    """A gate's number, its 95 % interval and the images that it rests on, for reading."""
    reading = gate.reading
    if reading is None or math.isnan(reading.value):
        return "not measured"
    text = format_number(reading.value)
    if not math.isnan(reading.low):
        text += f" ({format_number(reading.low)} to {format_number(reading.high)})"
    return text + (f", {reading.images} images" if reading.images else "")


def change(audit: EffectAudit, finding: PairFinding) -> str:
    """The change that a finding is about, such as "sex: female → male"."""
    return f"{words(audit.attribute)}: {finding.first} → {finding.second}"


def direction_sentence(audit: EffectAudit, finding: PairFinding) -> str:
    """In which direction scores and decisions move, and which errors that causes."""
    numbers = finding.numbers
    mean = numbers["mean"]
    sentences = [
        f"As {finding.second} instead of {finding.first}, the score is {_signed(mean.value)} (95 % interval "
        f"{_signed(mean.low)} to {_signed(mean.high)}) on average over {audit.individuals} images of "
        f"{audit.patients} patients; {numbers['up'].value:.1%} of decisions turn positive, "
        f"{numbers['down'].value:.1%} negative."
    ]
    missed, alarm = numbers["missed_at_second"], numbers["alarm_at_second"]
    if not math.isnan(missed.value):
        back = numbers["missed_at_first"]
        sentences.append(
            f"Of those with the finding, {_share(missed)} are missed only as {finding.second} and "
            f"{_share(back)} only as {finding.first}."
        )
    if not math.isnan(alarm.value):
        back = numbers["alarm_at_first"]
        sentences.append(
            f"Of those without it, {_share(alarm)} are false alarms only as {finding.second} and "
            f"{_share(back)} only as {finding.first}."
        )
    return " ".join(sentences)


def settles(finding: PairFinding) -> str:
    """What would settle a finding that is not settled; empty for one that is."""
    if finding.verdict != "inconclusive":
        return ""
    return (
        f"About {_count(finding.patients_for_equivalence)} patients to show invariance if there is no "
        f"effect; about {_count(finding.patients_to_detect)} to find one as large as the margin."
    )


def _count(value: float) -> str:
    return format_number(int(value)) if math.isfinite(value) else "more than can be computed"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")
