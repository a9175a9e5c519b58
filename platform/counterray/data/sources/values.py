"""Text of label files and DICOM tags read as ages, sexes and numbers."""

from __future__ import annotations

import math
import re

_YEARS_PER_UNIT = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

MAXIMUM_AGE = 120.0
"""Age above which an entry is taken for a slip of the pen [years]."""


def parse_age(text: str | None) -> float | None:
    """Age in years from ``58``, ``058Y``, ``013M``, ``6W`` or ``001D``; NaN where it is implausible.

    Returns:
        Years, ``None`` where nothing readable is given, NaN where the age is over `MAXIMUM_AGE`
        (negative ages do not parse).
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", (text or "").strip().upper())
    if match is None:
        return None
    years = float(match[1]) * _YEARS_PER_UNIT[match[2]]
    return years if years <= MAXIMUM_AGE else math.nan


def parse_sex(text: str | None) -> str | None:
    """``female`` or ``male`` from ``F``, ``Female``, ``M``, ``male``; ``None`` for anything else."""
    return {"f": "female", "female": "female", "m": "male", "male": "male"}.get((text or "").strip().lower())


def parse_positive(text: str | None) -> float | None:
    """A positive finite number, or ``None``; a pixel spacing of 0 means that it is unknown."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def years_between(first: str, last: str) -> str:
    """The years from one year to another as text for `parse_age`; empty where one of them is no year."""
    try:
        return str(int(float(last)) - int(float(first)))
    except (ValueError, OverflowError):
        return ""


def or_none(text: str | None) -> str | None:
    """The text without surrounding white space, or ``None`` where it is empty."""
    return (text or "").strip() or None


def plausible_ages(texts: list[str]) -> tuple[list[float | None], int]:
    """Ages of many rows, and how many were implausible (and are ``None`` now)."""
    ages = [parse_age(text) for text in texts]
    implausible = sum(age is not None and math.isnan(age) for age in ages)
    return [None if age is None or math.isnan(age) else age for age in ages], implausible
