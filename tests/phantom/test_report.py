"""The report says what is there, where and how bad, and denies only what is not there."""

from __future__ import annotations

import re

import pytest

from counterray.data.phantom.population import draw_population
from counterray.data.phantom.report import TERMS, write_report
from counterray.data.phantom.scm import FINDING_NAMES, SIDES, ZONES

VALUES = {name: value.tolist() for name, value in draw_population(1, 0, 1500, image_size=64).values.items()}
STUDIES = [dict(zip(VALUES, row, strict=True)) for row in zip(*VALUES.values(), strict=True)]
REPORTS = [write_report(study) for study in STUDIES]
DENIAL = re.compile(r"^(no|there is no|there is no evidence of|negative for)\b", re.IGNORECASE)


def sentences(report):
    return [
        part.strip()
        for part in re.split(r"(?<=\.)\s+|findings:|impression:", report, flags=re.IGNORECASE)
        if part
    ]


def about(report, finding):
    return [s for s in sentences(report) if any(term in s.lower() for term in TERMS[finding])]


@pytest.mark.parametrize("finding", FINDING_NAMES)
def test_present_findings_are_affirmed_and_absent_ones_never(finding):
    denied = 0
    for study, report in zip(STUDIES, REPORTS, strict=True):
        said = about(report, finding)
        affirmed = [s for s in said if not DENIAL.match(s)]
        if study[f"severity.{finding}"] > 0:
            assert affirmed, report
            assert len(affirmed) == len(said), report
        else:
            assert not affirmed, report
            denied += bool(said)
    assert denied > 300


def test_place_and_grade_are_the_studys():
    for study, report in zip(STUDIES, REPORTS, strict=True):
        for finding in ("consolidation", "atelectasis", "pleural_effusion", "pneumothorax"):
            if study[f"severity.{finding}"] == 0:
                continue
            first = about(report, finding)[0].lower()
            side = SIDES[int(study[f"side.{finding}"])]
            assert side in first, report
            assert all(other not in first for other in SIDES if other != side)
            if f"zone.{finding}" in study:
                assert ZONES[int(study[f"zone.{finding}"])] in first
            if study[f"severity.{finding}"] >= 0.75:
                assert not re.search(r"mild|small|slight|moderate|possible|suspected|excluded", first)


def test_reports_vary_doubt_and_digress():
    assert len(set(REPORTS)) > 0.95 * len(REPORTS)
    text = " ".join(REPORTS).lower()
    for words in ("cannot be excluded", "possible", "spine", "no evidence of", "moderate", "impression:"):
        assert text.count(words) > 10, words
    assert not any(re.search(r"\s\.|\s\s|\{|\}|impression:\s*$", report, re.IGNORECASE) for report in REPORTS)


def test_a_report_is_a_function_of_its_study():
    assert [write_report(study) for study in STUDIES[:20]] == REPORTS[:20]
