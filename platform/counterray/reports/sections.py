"""A report's text cut into the sentences that describe the image.

A kept library would bring a language-model stack (medspaCy, negspaCy) for what is two patterns here, as
radiology reports are written in short sentences under headings with a colon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

DESCRIBING = ("findings", "impression", "conclusion", "opinion", "interpretation", "report")
"""Sections that describe this image; text before any heading does so too."""

OTHER = (
    "indication",
    "indications",
    "clinical indication",
    "clinical history",
    "clinical information",
    "history",
    "reason for exam",
    "reason for examination",
    "reason for study",
    "comparison",
    "comparisons",
    "technique",
    "procedure",
    "exam",
    "examination",
    "date",
    "recommendation",
    "recommendations",
    "notification",
)
"""Sections that do not: why the image was made, how, and what it is compared with."""

_NAMES = sorted((*DESCRIBING, *OTHER), key=len, reverse=True)
# A heading begins with a capital: "on the prior exam: unchanged" has none.
_HEADING = re.compile(rf"(?<![\w-])(?=[A-Z])((?i:{'|'.join(_NAMES)}))\s*:")
_END = re.compile(
    r"(?<!\bvs)(?<!\bdr)(?<!\bi\.e)(?<!\be\.g)(?<!\bapprox)[.!?]+(?=\s|$|[A-Z])|\n\s*\n|;|(?<=\s)\d{1,2}[.)]\s"
)


def describing(text: str) -> str:
    """The parts of a report that describe the image, each in a paragraph of its own.

    Args:
        text: The whole report, with headings such as ``IMPRESSION:`` or without any.
    """
    parts, start, wanted = [], 0, True
    for heading in _HEADING.finditer(text):
        if wanted:
            parts.append(text[start : heading.start()])
        start, wanted = heading.end(), heading.group(1).lower() in DESCRIBING
    if wanted:
        parts.append(text[start:])
    return "\n\n".join(part.strip() for part in parts if part.strip())


def describes(text: str) -> bool:
    """Whether a report says anything of the image: an indication or a list of techniques alone does not."""
    return any(True for _ in sentences(describing(text)))


def sentences(text: str) -> Iterator[str]:
    """Sentences of a text in lower case, with single spaces and without their final mark.

    A line break alone ends none (reports are wrapped), an empty line, a semicolon or a number of a list do;
    a decimal point and a few abbreviations do not.
    """
    for part in _END.split(text):
        sentence = " ".join(part.split()).lower()
        if any(character.isalpha() for character in sentence):
            yield sentence
