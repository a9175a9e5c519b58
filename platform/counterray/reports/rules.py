"""The rule-based refiner: a lexicon, and the reach of negations and doubts; offline and deterministic.

Reference: Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge
summaries" (NegEx), 2001, https://doi.org/10.1006/jbin.2001.1029, and Harkema et al., "ConText", 2009,
https://doi.org/10.1016/j.jbi.2009.05.002: cues act forwards or backwards until a terminator or the sentence's
end. Here a cue that stands behind its finding acts on the nearest one and on those joined to it by "or".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from counterray.config import Config
from counterray.reports.lexicon import Lexicon, Span, Vocabulary, lexicon
from counterray.reports.refine import Mention, Refined, Severity, normalise
from counterray.reports.sections import describing, sentences

Status = Literal["affirmed", "negated", "uncertain", "hypothetical"]

_JOINED = re.compile(r"[\s,/]*(?:(?:and|or|with|associated|adjacent|,|/)[\s,/]*)+")
_LISTED = re.compile(r"\b(?:or|nor)\b|,|/")
_DIVISION = re.compile(r"\band\b|\bor\b|\bwith\b|,|\bas well as\b")


class RulesConfig(Config):
    """The rules have no settings: their words are in ``lexicon.yaml``."""

    name: Literal["rules"] = "rules"
    """The refiner's name."""


class RulesRefiner:
    """Reads reports by rules; see `counterray.reports.refine.Refiner`."""

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()

    def refine(self, texts: Sequence[str]) -> list[Refined]:
        """Reads report texts, in order."""
        return [_read(text) for text in texts]


def _read(text: str) -> Refined:
    said = [_understood(sentence) for sentence in sentences(describing(text))]
    mentions = [mention for found, _ in said for mention in found]
    if said and not any(is_abnormal for _, is_abnormal in said):
        mentions.append(Mention(finding="no_finding"))
    return normalise(mentions)


@lru_cache(maxsize=1 << 14)  # More than half of the sentences of real reports are repetitions.
def _understood(sentence: str) -> tuple[tuple[Mention, ...], bool]:
    """A sentence's mentions, and whether it affirms something abnormal outside of the vocabulary."""
    words = lexicon()
    cues = words.cues.find(sentence)
    found = words.abnormal.find(sentence)
    is_abnormal = any(_status(span, found, cues, sentence) in ("affirmed", "uncertain") for span in found)
    return tuple(mentions_in(sentence, words)), is_abnormal


def mentions_in(sentence: str, words: Lexicon) -> list[Mention]:
    """The mentions of one sentence, as they stand in it.

    Args:
        sentence: Lower case, with single spaces.
        words: The lexicon.
    """
    spans = words.findings.find(sentence)
    cues = [cue for cue in words.cues.find(sentence) if not _inside(cue, spans)]
    mentions = []
    place = ""
    for number, span in enumerate(spans):
        if not span.label:
            continue
        if span.label.startswith("!"):
            mentions.append(Mention(finding=span.label[1:], negated=True))
            continue
        status = _status(span, spans, cues, sentence)
        if status == "affirmed" and words.doubtful.find(sentence[span.start : span.end]):
            status = "uncertain"
        before, after = _neighbourhood(number, spans, sentence)
        texts = (sentence[span.start : span.end], before, after)
        previous, place = place, _place(texts, words)
        if not place and number and _JOINED.fullmatch(sentence[spans[number - 1].end : span.start]):
            place = previous
        if status != "hypothetical":
            mentions.append(
                Mention(
                    finding=span.label,
                    location=place,
                    severity=_severity(texts, words),
                    negated=status == "negated",
                    uncertain=status == "uncertain",
                )
            )
    return mentions


def _status(span: Span, spans: Sequence[Span], cues: Sequence[Span], sentence: str) -> Status:
    """What the cues around a finding make of it; a negation counts more than a doubt."""
    stops = [cue for cue in cues if cue.label == "terminator"]
    acting = set()
    for cue in cues:
        kind, _, side = cue.label.partition(".")
        reaches_on = cue.end <= span.start and not _between(stops, cue.end, span.start)
        if side != "after" and cue.label not in ("pseudo", "terminator") and reaches_on:
            acting.add(kind)
        reaches_back = cue.start >= span.end and not _between(stops, span.end, cue.start)
        if side in ("after", "around") and reaches_back and _is_nearest(span, cue, spans, sentence):
            acting.add(kind)
    if "hypothetical" in acting:
        return "hypothetical"
    if "negation" in acting:
        return "negated"
    return "uncertain" if "uncertainty" in acting else "affirmed"


def _is_nearest(span: Span, cue: Span, spans: Sequence[Span], sentence: str) -> bool:
    """Whether no finding stands between, unless it belongs to the same list ("a, b or c is not seen")."""
    between = [other for other in spans if span.end <= other.start and other.end <= cue.start]
    ends = [span.end, *(other.end for other in between)]
    gaps = [sentence[end : other.start] for end, other in zip(ends, between, strict=False)]
    return all(_LISTED.search(gap) for gap in gaps)


def _between(spans: Sequence[Span], start: int, end: int) -> bool:
    return any(start <= span.start and span.end <= end for span in spans)


def _inside(cue: Span, spans: Sequence[Span]) -> bool:
    return any(span.start <= cue.start and cue.end <= span.end for span in spans)


def _neighbourhood(number: int, spans: Sequence[Span], sentence: str) -> tuple[str, str]:
    """The words before and after a finding that speak of it and not of its neighbours.

    Words between two findings are divided at the last "and", "or", "with" or comma; without one they belong
    to the first if they begin with a preposition ("effusion on the left"), else to the second.
    """
    span = spans[number]
    before = sentence[spans[number - 1].end : span.start] if number else sentence[: span.start]
    after = sentence[span.end : spans[number + 1].start] if number + 1 < len(spans) else sentence[span.end :]
    if number:
        before = _divided(before)[1]
    if number + 1 < len(spans):
        after = _divided(after)[0]
    return before, after


def _divided(text: str) -> tuple[str, str]:
    divisions = list(_DIVISION.finditer(text))
    if divisions:
        return text[: divisions[-1].start()], text[divisions[-1].end() :]
    return (text, "") if re.match(r"\s*(in|on|at|of|within|over)\b", text) else ("", text)


def _severity(texts: tuple[str, str, str], words: Lexicon) -> Severity:
    """The grade in the expression itself, else the nearest before it, else none.

    Of what follows only a leading "is small" counts.
    """
    own, before, after = texts
    following = re.match(r"\s*(is|are|appears?|remains?)\s+(\w+\s+)?\w+", after)
    for text, position in ((own, -1), (before, -1), (following.group() if following else "", 0)):
        found = words.severities.find(text)
        if found:
            grade: Severity = found[position].label  # type: ignore[assignment]
            return grade
    return ""


def _place(texts: tuple[str, str, str], words: Lexicon) -> str:
    side = _nearest(words.sides, texts)
    zone = _nearest(words.zones, texts)
    sides = {span.label for text in texts for span in words.sides.find(text)}
    if {"left", "right"} <= sides:
        side = "bilateral"
    return " ".join(part for part in (side, zone) if part)


def _nearest(words: Vocabulary, texts: tuple[str, str, str]) -> str:
    own, before, after = texts
    for text, position in ((own, 0), (before, -1), (after, 0)):
        found = words.find(text)
        if found:
            return found[position].label
    return ""
