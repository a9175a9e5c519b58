"""The words of the rule-based refiner: read from ``lexicon.yaml``, checked and compiled once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import model_validator

from counterray.config import Config, load
from counterray.data.labels import FINDINGS
from counterray.reports.refine import SEVERITIES, SIDES, ZONES

Phrases = tuple[str, ...]
"""Regular expressions over lower-case text, in which a space stands for any space or hyphen."""


class Cues(Config):
    """Words that change what a finding's mention means."""

    before: Phrases
    """Act on the findings that follow."""
    after: Phrases
    """Act on the findings that precede."""
    around: Phrases = ()
    """Act on the findings on both sides."""
    within: Phrases = ()
    """Act where they are part of the finding's own expression."""


class LexiconFile(Config):
    """The content of ``lexicon.yaml``."""

    findings: dict[str, Phrases]
    """Finding to the expressions that name it."""
    ignored: Phrases
    """Expressions that hold a finding's word and mean something else."""
    denials: dict[str, Phrases]
    """Finding to expressions that say it is not there."""
    abnormal: Phrases
    """Expressions for abnormalities outside of the vocabulary."""
    parts: dict[str, str]
    """Name to an expression that others use as ``{name}``."""
    severities: dict[str, Phrases]
    """Grade to its words."""
    sides: dict[str, Phrases]
    """Side to its words."""
    zones: dict[str, Phrases]
    """Zone of the lungs to its words."""
    negation: Cues
    """What denies."""
    uncertainty: Cues
    """What casts doubt."""
    hypothetical: Phrases
    """What makes the findings that follow questions, not observations."""
    pseudo: Phrases
    """What looks like a denial and is none."""
    terminators: Phrases
    """What ends the reach of a cue inside a sentence."""

    @model_validator(mode="after")
    def _known_names(self) -> LexiconFile:
        groups = (
            ("findings", {*self.findings, *self.denials}, FINDINGS),
            ("severities", set(self.severities), SEVERITIES),
            ("sides", set(self.sides), SIDES),
            ("zones", set(self.zones), ZONES),
        )
        for name, given, allowed in groups:
            unknown = sorted(given - set(allowed))
            if unknown:
                raise ValueError(f"{name} names {unknown[0]!r}; known: {', '.join(allowed)}")
        return self


@dataclass(frozen=True)
class Span:
    """A stretch of a sentence and what it stands for.

    Attributes:
        start: First character.
        end: One past the last character.
        label: Name of what was found there.
    """

    start: int
    end: int
    label: str


class Vocabulary:
    """Labelled expressions, looked for all at once."""

    def __init__(self, phrases: Mapping[str, Iterable[str]], parts: Mapping[str, str] | None = None) -> None:
        self._patterns = {
            label: [re.compile(rf"\b(?:{_expand(item, parts or {})})(?!\w)") for item in items]
            for label, items in phrases.items()
        }

    def find(self, sentence: str) -> list[Span]:
        """Stretches of a sentence by position; of two that overlap the longer, of equal ones both."""
        found = [
            Span(match.start(), match.end(), label)
            for label, patterns in self._patterns.items()
            for pattern in patterns
            for match in pattern.finditer(sentence)
            if match.end() > match.start()
        ]
        found.sort(key=lambda span: span.start - span.end)
        kept: list[Span] = []
        for span in found:
            if all(_apart_or_equal(span, other) for other in kept):
                kept.append(span)
        return sorted(kept, key=lambda span: span.start)


def _apart_or_equal(span: Span, other: Span) -> bool:
    is_equal = span.start == other.start and span.end == other.end and span.label != other.label
    return is_equal or span.end <= other.start or span.start >= other.end


@dataclass(frozen=True)
class Lexicon:
    """The compiled words.

    Attributes:
        findings: Labels are findings; ``!`` in front marks an expression that denies one, and the empty
            label one that means something else.
        abnormal: Abnormalities outside of the vocabulary.
        severities: Labels are `SEVERITIES`.
        sides: Labels are `SIDES`.
        zones: Labels are `ZONES`.
        cues: Labels are ``negation.before`` and the like, ``hypothetical``, ``pseudo`` and ``terminator``.
        doubtful: Expressions that make the finding around them uncertain.
    """

    findings: Vocabulary
    abnormal: Vocabulary
    severities: Vocabulary
    sides: Vocabulary
    zones: Vocabulary
    cues: Vocabulary
    doubtful: Vocabulary


@cache
def lexicon() -> Lexicon:
    """The lexicon of ``lexicon.yaml``.

    Raises:
        ConfigError: If the file is not valid or names what the contract does not know.
    """
    file = load(LexiconFile, Path(__file__).with_name("lexicon.yaml"))
    named = {
        **file.findings,
        "": file.ignored,
        **{f"!{name}": phrases for name, phrases in file.denials.items()},
    }
    cues = {
        "pseudo": file.pseudo,
        "negation.before": file.negation.before,
        "negation.after": file.negation.after,
        "uncertainty.before": file.uncertainty.before,
        "uncertainty.after": file.uncertainty.after,
        "uncertainty.around": file.uncertainty.around,
        "hypothetical": file.hypothetical,
        "terminator": file.terminators,
    }
    return Lexicon(
        findings=Vocabulary(named, file.parts),
        abnormal=Vocabulary({"abnormal": file.abnormal}, file.parts),
        severities=Vocabulary(file.severities),
        sides=Vocabulary(file.sides),
        zones=Vocabulary(file.zones),
        cues=Vocabulary(cues),
        doubtful=Vocabulary({"doubtful": file.uncertainty.within}),
    )


def _expand(phrase: str, parts: Mapping[str, str]) -> str:
    for name, expression in parts.items():
        phrase = phrase.replace(f"{{{name}}}", expression)
    return phrase.replace(" ", r"[\s-]+").replace("[\\s-]+?", r"[\s-]*")
