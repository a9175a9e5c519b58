"""The contract of report refinement: a report's text in, its facts and one short prompt out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

from counterray.config import ConfigError
from counterray.data.labels import FINDINGS

Severity = Literal["", "mild", "moderate", "severe"]
"""Grade of a finding; empty where the report gives none."""

SEVERITIES: tuple[str, ...] = get_args(Severity)

SIDES = ("left", "right", "bilateral")
ZONES = ("apical", "upper", "middle", "lower", "basal", "perihilar", "retrocardiac", "lingular")
LOCATIONS = ("", *SIDES, *ZONES, *(f"{side} {zone}" for side in SIDES for zone in ZONES))
"""Places in their normal form: a side, a zone of the lungs, or both; empty where the report gives none."""

NO_FINDING_PROMPT = "No acute finding."
"""The prompt of a report that affirms and suspects nothing of the vocabulary."""

PARENTS: Mapping[str, str] = {
    "cardiomegaly": "enlarged_cardiomediastinum",
    "lung_lesion": "lung_opacity",
    "edema": "lung_opacity",
    "consolidation": "lung_opacity",
    "pneumonia": "lung_opacity",
    "atelectasis": "lung_opacity",
}
"""Finding to the wider one that it implies (Irvin et al., 2019, figure 1); pneumonia implies an opacity."""

NOUNS: Mapping[str, str] = {
    **{name: name.replace("_", " ") for name in FINDINGS},
    "pleural_other": "pleural thickening",
    "support_devices": "support device",
}
"""Finding to its name in a prompt."""


_PLACES = {zone: f"{zone} zone" for zone in ("upper", "middle", "lower")}


class RefineError(ConfigError):
    """Reports cannot be refined as asked; the message names the setting, its value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """What a report says of one finding at one place.

    Attributes:
        finding: One of `FINDINGS`; ``no_finding`` says that the image is normal.
        location: One of `LOCATIONS`.
        severity: One of `SEVERITIES`.
        negated: The report denies the finding.
        uncertain: The report neither affirms nor denies it ("possible", "cannot be excluded").

    Raises:
        ValueError: If a value is not allowed, or the mention is both negated and uncertain.
    """

    finding: str
    location: str = ""
    severity: Severity = ""
    negated: bool = False
    uncertain: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("finding", FINDINGS), ("location", LOCATIONS), ("severity", SEVERITIES)):
            if getattr(self, name) not in allowed:
                shown = ", ".join(repr(value) for value in allowed)
                raise ValueError(f"A mention's {name} is none of: {shown}.")
        if self.negated and self.uncertain:
            raise ValueError("A mention is negated or uncertain, not both.")


@dataclass(frozen=True)
class Refined:
    """What a refiner kept of a report.

    Attributes:
        mentions: In the order of `FINDINGS`, one for each finding and place (`normalise`).
    """

    mentions: tuple[Mention, ...] = ()

    @cached_property
    def prompt(self) -> str:
        """One sentence for each finding that is affirmed or suspected; equal facts give equal prompts.

        A sentence is "Possible" where uncertain, then severity, place and name: "Possible mild left pleural
        effusion." Doubt is kept in words, as a generator should not learn to draw a doubtful finding as a
        certain one. A wider finding is left out where a certain narrower one says as much. The rules read
        the same facts out of a prompt again.
        """
        said = [mention for mention in self.mentions if not mention.negated and _is_pathology(mention)]
        sentences = [_sentence(mention) for mention in said if not _is_implied(mention, said)]
        return " ".join(sentences) or NO_FINDING_PROMPT

    @cached_property
    def findings(self) -> Mapping[str, int]:
        """Finding to 1 (affirmed), 0 (denied) or -1 (uncertain); what is not mentioned is missing.

        A finding affirms or suspects the wider ones of `PARENTS` too; anything affirmed or suspected denies
        ``no_finding``.
        """
        values: dict[str, int] = {}
        for mention in self.mentions:
            value = 0 if mention.negated else -1 if mention.uncertain else 1
            names = [mention.finding, *([PARENTS[mention.finding]] if mention.finding in PARENTS else [])]
            for name in names[:1] if mention.negated else names:
                values[name] = _stronger(values.get(name), value)
        if any(values[name] != 0 for name in values if name != "no_finding"):
            values["no_finding"] = 0
        return {name: values[name] for name in FINDINGS if name in values}


class Refiner(Protocol):
    """Anything that reads reports.

    Attributes:
        tally: What happened since it was made, by name: ``cached``, and ``fell_back.<cause>``.
    """

    tally: Counter[str]

    def refine(self, texts: Sequence[str]) -> list[Refined]:
        """Reads report texts.

        Args:
            texts: Reports; an empty one has no mention.

        Returns:
            What was kept of each, in order.
        """
        ...


def normalise(mentions: Iterable[Mention]) -> Refined:
    """Puts mentions into their normal form.

    Of what is affirmed or suspected, one mention remains for each finding and place: the affirmed over the
    suspected, with the highest severity. One without a place is taken for a repetition of one with a place.
    A side without a zone is taken for a repetition of the same side with one. A denial remains only where
    the finding is neither affirmed nor suspected, without place and severity.
    """
    groups: dict[str, list[Mention]] = {}
    for mention in mentions:
        groups.setdefault(mention.finding, []).append(mention)
    kept: list[Mention] = []
    for finding in FINDINGS:
        said = [mention for mention in groups.get(finding, ()) if not mention.negated]
        if said:
            kept += _merged(said)
        elif finding in groups:
            kept.append(Mention(finding=finding, negated=True))
    if any(not mention.negated and _is_pathology(mention) for mention in kept):
        kept = [mention for mention in kept if _is_pathology(mention)]
    return Refined(tuple(kept))


def _merged(said: Sequence[Mention]) -> list[Mention]:
    places = {mention.location for mention in said}
    precise = sorted(place for place in places if not any(_within(other, place) for other in places))
    groups: dict[str, list[Mention]] = {}
    for mention in said:
        own = mention.location
        # The first of several more precise places: a repetition says nothing of the others.
        place = own if own in precise else next(place for place in precise if _within(place, own))
        groups.setdefault(place, []).append(mention)
    return [
        Mention(
            finding=group[0].finding,
            location=place,
            severity=max((mention.severity for mention in group), key=SEVERITIES.index),
            uncertain=all(mention.uncertain for mention in group),
        )
        for place, group in sorted(groups.items(), key=lambda item: LOCATIONS.index(item[0]))
    ]


def _within(place: str, wider: str) -> bool:
    """Whether ``place`` says more than ``wider`` and all that it says."""
    return place != wider and (not wider or set(wider.split()) < set(place.split()))


def _is_pathology(mention: Mention) -> bool:
    return mention.finding != "no_finding"


def _is_implied(mention: Mention, said: Sequence[Mention]) -> bool:
    narrower = [
        other for other in said if PARENTS.get(other.finding) == mention.finding and not other.uncertain
    ]
    return any(not mention.location or other.location == mention.location for other in narrower)


def _sentence(mention: Mention) -> str:
    doubt = "possible" if mention.uncertain else ""
    place = [_PLACES.get(word, word) for word in mention.location.split()]
    words = (doubt, mention.severity, *place, NOUNS[mention.finding])
    text = " ".join(word for word in words if word)
    return f"{text[0].upper()}{text[1:]}."


def _stronger(known: int | None, value: int) -> int:
    order = (None, 0, -1, 1)
    return value if known is None or order.index(value) > order.index(known) else known
