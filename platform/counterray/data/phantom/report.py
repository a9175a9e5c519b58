"""Free-text reports: findings with place and severity, negations, doubt, and sentences that say nothing.

A report is a pure function of the study's values. Every finding that is present is named in a sentence that
affirms it (at times with doubt, where it is mild); findings that are absent are denied or not mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterray.data.phantom.anatomy import Scalars
from counterray.data.phantom.randomness import draws
from counterray.data.phantom.scm import FINDING_LAWS, SIDES, ZONES

TERMS = {
    "cardiomegaly": ("cardiomegaly", "enlargement of the cardiac silhouette"),
    "pleural_effusion": ("pleural effusion", "pleural fluid"),
    "consolidation": ("consolidation", "airspace consolidation"),
    "atelectasis": ("atelectasis", "atelectatic change"),
    "edema": ("pulmonary edema", "interstitial edema"),
    "pneumothorax": ("pneumothorax", "pneumothorax"),
}
"""Finding to the terms that reports use for it."""

_GRADES = (
    (0.45, ("mild", "small", "slight")),
    (0.75, ("moderate",)),
    (1.01, ("severe", "marked", "extensive")),
)
_PRESENT = (
    "There is {finding}{place}.",
    "{Finding}{place} is seen.",
    "{Finding} is present{place}.",
    "Findings are consistent with {finding}{place}.",
)
_DOUBTFUL = (
    "Possible {finding}{place}.",
    "{Finding}{place} is suspected.",
    "Opacity may represent {finding}{place}.",
    "{Finding}{place} cannot be excluded.",
)
_DOUBTFUL_HEART = ("Possible {finding}.", "{Finding} is suspected.", "{Finding} cannot be excluded.")
_ABSENT_ONE = ("No {a}.", "There is no evidence of {a}.", "No {a} is identified.")
_ABSENT_TWO = ("No {a} or {b}.", "There is no {a} or {b}.", "Negative for {a} and {b}.")
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "The lungs are clear.",
    "Normal chest radiograph.",
    "No acute process.",
)
_HEART_NORMAL = ("Heart size is normal.", "The cardiac silhouette is within normal limits.")
_TECHNIQUE = ("PA view of the chest.", "Frontal radiograph of the chest.", "Single frontal view.", "")
_IRRELEVANT = (
    "Mild degenerative changes of the thoracic spine.",
    "The patient was informed of the results.",
    "Comparison is made with the prior examination.",
    "Clinical correlation is recommended.",
    "The osseous structures are intact.",
    "Referred by the outpatient clinic.",
    "Image quality is adequate.",
)
_HEADERS = (("FINDINGS:", "IMPRESSION:"), ("", ""), ("Findings:", "Impression:"))


class _Chooser:
    """Deterministic choices of one study, in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        self._numbers = iter(draws(seed, "report", 96))

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability

    def pick(self, options: Sequence[str]) -> str:
        return options[int(next(self._numbers) * len(options))]

    def shuffled(self, items: Sequence[str]) -> list[str]:
        keys = [next(self._numbers) for _ in items]
        return [item for _, item in sorted(zip(keys, items, strict=True))]


def write_report(study: Scalars) -> str:
    """The report of a study.

    Args:
        study: The noise seed, severities, sides and zones.
    """
    choose = _Chooser(int(study["noise_seed"]))
    present = [name for name in FINDING_LAWS if study[f"severity.{name}"] > 0]
    sentences = [_affirm(study, name, choose) for name in choose.shuffled(present)]
    sentences += _deny([name for name in FINDING_LAWS if name not in present], choose)
    if choose.chance(0.6):
        sentences.append(choose.pick(_IRRELEVANT))
    if choose.chance(0.25):
        sentences.insert(0, choose.pick(_IRRELEVANT))
    opening, closing = _HEADERS[int(choose.pick("012"))]
    impression = _impression(present, choose)
    parts = [choose.pick(_TECHNIQUE), opening, *dict.fromkeys(sentences)]
    return " ".join(part for part in (*parts, closing if impression else "", impression) if part)


def _affirm(study: Scalars, finding: str, choose: _Chooser) -> str:
    severity = study[f"severity.{finding}"]
    grade = choose.pick(next(words for limit, words in _GRADES if severity < limit))
    term = choose.pick(TERMS[finding])
    noun = f"{grade} {term}" if choose.chance(0.8) else term
    doubtful = severity < 0.5 and choose.chance(0.3)
    mild = _DOUBTFUL_HEART if finding == "cardiomegaly" else _DOUBTFUL
    template = choose.pick(mild if doubtful else _PRESENT)
    place = _place(study, finding)
    return template.format(finding=noun, Finding=noun[0].upper() + noun[1:], place=place)


def _place(study: Scalars, finding: str) -> str:
    if f"side.{finding}" not in study:
        return ""
    side = SIDES[int(study[f"side.{finding}"])]
    if f"zone.{finding}" in study:
        zone = ZONES[int(study[f"zone.{finding}"])]
        return f" in the {zone} zones of both lungs" if side == "both" else f" in the {side} {zone} lung zone"
    return " on both sides" if side == "both" else f" on the {side}"


def _deny(absent: list[str], choose: _Chooser) -> list[str]:
    names = [name for name in choose.shuffled(absent) if choose.chance(0.75)]
    sentences = []
    if "cardiomegaly" in names and choose.chance(0.6):
        names.remove("cardiomegaly")
        sentences.append(choose.pick(_HEART_NORMAL))
    while names:
        a = choose.pick(TERMS[names.pop()])
        if names and choose.chance(0.6):
            sentences.append(choose.pick(_ABSENT_TWO).format(a=a, b=choose.pick(TERMS[names.pop()])))
        else:
            sentences.append(choose.pick(_ABSENT_ONE).format(a=a))
    return sentences


def _impression(present: list[str], choose: _Chooser) -> str:
    if not present:
        return choose.pick(_NORMAL)
    terms = [TERMS[name][0] for name in present]
    listed = terms[0] if len(terms) == 1 else f"{', '.join(terms[:-1])} and {terms[-1]}"
    return f"{listed[0].upper()}{listed[1:]}." if choose.chance(0.7) else ""
