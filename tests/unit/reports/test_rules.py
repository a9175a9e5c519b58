"""The rule-based refiner: sections, sentences, cues and their reach, places and grades."""

from __future__ import annotations

from itertools import product

import pytest

from counterray.config import ConfigError, read, validate
from counterray.data.labels import FINDINGS
from counterray.data.phantom.population import draw_population
from counterray.data.phantom.report import write_report
from counterray.data.phantom.scm import FINDING_NAMES, SIDES, ZONES
from counterray.data.sources.iu_xray import IuXray
from counterray.reports import lexicon as lexicon_module
from counterray.reports.agreement import agreement
from counterray.reports.lexicon import LexiconFile, lexicon
from counterray.reports.refine import (
    LOCATIONS,
    NO_FINDING_PROMPT,
    SEVERITIES,
    Mention,
    Refined,
    Refiner,
    normalise,
)
from counterray.reports.rules import RulesRefiner, mentions_in
from counterray.reports.sections import describing, sentences
from counterray.storage import resolve

REFINER: Refiner = RulesRefiner()


def read_one(text: str) -> Refined:
    return REFINER.refine([text])[0]


def values(sentence: str) -> dict[str, int]:
    return dict(read_one(sentence).findings)


def test_only_sections_that_describe_the_image_count():
    report = (
        "COMPARISON: Chest film with pneumothorax.\nINDICATION: Rule out pneumonia. History: edema.\n"
        "FINDINGS: Small left pleural effusion.\nIMPRESSION: 1. Pleural effusion. 2. Cardiomegaly."
    )
    assert describing(report) == ("Small left pleural effusion.\n\n1. Pleural effusion. 2. Cardiomegaly.")
    assert read_one(report).prompt == "Cardiomegaly. Mild left pleural effusion."


def test_a_text_without_headings_and_one_before_them_describe_too():
    assert describing("Cardiomegaly. Comparison: none.") == "Cardiomegaly."
    assert describing("No change since the prior exam: stable.") == "No change since the prior exam: stable."


def test_sentences_end_where_they_end():
    text = "Nodule of 2.5 cm vs. scar.\nStable; no\neffusion\n\nClear. 1. Heart"
    assert list(sentences(text)) == ["nodule of 2.5 cm vs. scar", "stable", "no effusion", "clear", "heart"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No pneumothorax, pleural effusion or focal consolidation.", 0),
        ("There is no evidence of pneumothorax.", 0),
        ("Negative for pneumothorax.", 0),
        ("Lungs are free of pneumothorax.", 0),
        ("Pneumothorax is not seen.", 0),
        ("The pneumothorax has resolved.", 0),
        ("No effusion or pneumothorax is identified.", 0),
        ("Possible pneumothorax.", -1),
        ("Pneumothorax cannot be excluded.", -1),
        ("Lucency may represent pneumothorax.", -1),
        ("Pneumothorax is suspected.", -1),
        ("Pneumothorax versus skin fold.", -1),
        ("Bleb versus pneumothorax.", -1),
        ("There is a pneumothorax.", 1),
        ("No effusion, but there is a pneumothorax.", 1),
        ("No change in the small pneumothorax.", 1),
        ("No significant interval change in pneumothorax.", 1),
        ("Pneumothorax without shift.", 1),
        ("Findings are consistent with pneumothorax.", 1),
        ("Evaluate for pneumothorax.", None),
    ],
)
def test_cues_reach_what_they_should(sentence, expected):
    assert values(sentence).get("pneumothorax") == expected


def test_a_cue_behind_denies_the_nearest_finding_and_its_list_only():
    found = values("There is cardiomegaly and pneumothorax is not seen.")
    assert (found["cardiomegaly"], found["pneumothorax"]) == (1, 0)
    found = values("Edema, effusion or pneumothorax is not seen.")
    assert {found[name] for name in ("edema", "pleural_effusion", "pneumothorax")} == {0}


@pytest.mark.parametrize(
    ("sentence", "prompt"),
    [
        ("Moderate left pleural effusion.", "Moderate left pleural effusion."),
        ("Small pleural effusion on the right is seen.", "Mild right pleural effusion."),
        ("There are bilateral pleural effusions, large on the left.", "Bilateral pleural effusion."),
        ("Bibasilar atelectasis.", "Bilateral basal atelectasis."),
        ("Consolidation in the right upper lobe.", "Right upper zone consolidation."),
        ("The heart is mildly enlarged.", "Mild cardiomegaly."),
        ("Mild to moderate edema.", "Moderate edema."),
        ("The pneumothorax is small.", "Mild pneumothorax."),
        (
            "Small left effusion and right basilar atelectasis.",
            "Right basal atelectasis. Mild left pleural effusion.",
        ),
        ("Left pleural effusion and atelectasis.", "Left atelectasis. Left pleural effusion."),
        ("Heart size upper limits of normal.", "Possible cardiomegaly."),
        ("Right PICC line in place.", "Right support device."),
        ("Pericardial effusion.", NO_FINDING_PROMPT),
        ("Thoracic scoliosis.", NO_FINDING_PROMPT),
        ("Chronic obstructive pulmonary disease.", NO_FINDING_PROMPT),
        ("", NO_FINDING_PROMPT),
    ],
)
def test_place_and_grade_go_with_their_finding(sentence, prompt):
    assert read_one(sentence).prompt == prompt


def test_normal_needs_a_text_and_nothing_abnormal_in_it():
    assert values("Heart size is normal. The lungs are clear.")["no_finding"] == 1
    assert values("The lungs are clear.") == {"no_finding": 1, "lung_opacity": 0}
    assert "no_finding" not in values("The lungs are clear. Degenerative changes of the spine.")
    assert values("No scoliosis. The lungs are clear.")["no_finding"] == 1
    assert values("INDICATION: cough") == {}
    assert values("") == {}


def test_one_expression_may_name_two_findings():
    found = values("Right hydropneumothorax.")
    assert (found["pneumothorax"], found["pleural_effusion"]) == (1, 1)


def test_case_and_wrapping_do_not_matter():
    assert read_one("MODERATE LEFT\npleural\n effusion") == read_one("Moderate left pleural effusion.")


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name != "no_finding"])
def test_the_rules_read_a_prompt_s_facts_again(finding):
    """A law: prompts are reports, so that an edit may start from what a prompt says."""
    for location, severity, uncertain in product(LOCATIONS, SEVERITIES, (False, True)):
        said = Mention(finding=finding, location=location, severity=severity, uncertain=uncertain)
        others = [Mention(finding="cardiomegaly"), Mention(finding="edema", severity="moderate")]
        refined = normalise([said, *(others if severity == "mild" else [])])
        again = read_one(refined.prompt)
        assert again.prompt == refined.prompt
        assert again.findings == refined.findings


def test_refining_is_deterministic_and_keeps_the_order():
    texts = ["Cardiomegaly.", "", "Edema."]
    assert RulesRefiner().refine(texts) == REFINER.refine(texts)
    assert [refined.prompt for refined in REFINER.refine(texts)] == [
        "Cardiomegaly.",
        NO_FINDING_PROMPT,
        "Edema.",
    ]


def test_a_lexicon_that_names_what_the_contract_does_not_know_is_refused(monkeypatch):
    path = lexicon_module.__file__.replace(".py", ".yaml")
    file = read(path)
    file["sides"] = {**file["sides"], "north": ["up"]}
    with pytest.raises(ConfigError, match="sides names 'north'; known: left, right, bilateral"):
        validate(LexiconFile, file)


def test_of_overlapping_expressions_the_longer_counts():
    spans = lexicon().findings.find("airspace consolidation and opacity")
    assert [span.label for span in spans] == ["consolidation", "lung_opacity"]
    assert [m.finding for m in mentions_in("airspace consolidation", lexicon())] == ["consolidation"]


VALUES = {name: value.tolist() for name, value in draw_population(1, 0, 1000, image_size=64).values.items()}
STUDIES = [dict(zip(VALUES, row, strict=True)) for row in zip(*VALUES.values(), strict=True)]


@pytest.fixture(scope="module")
def phantom_readings() -> list[Refined]:
    return REFINER.refine([write_report(study) for study in STUDIES])


def test_the_phantom_s_findings_are_read_without_an_error(phantom_readings):
    """Against the true severities: a doubtful mild finding is there, and nothing else is."""
    truth = [{name: int(study[f"severity.{name}"] > 0) for name in FINDING_NAMES} for study in STUDIES]
    readings = [refined.findings for refined in phantom_readings]
    with_doubt = agreement(readings, truth, uncertain="ones")
    assert len(with_doubt.findings) == len(FINDING_NAMES)
    assert all(row.f1 == 1 for row in with_doubt.findings), with_doubt.text()
    assert agreement(readings, truth).macro_f1() > 0.97, "doubt counts as absent: mild ones go"


def test_the_phantom_s_places_and_grades_are_read(phantom_readings):
    sides = {"left": "left", "right": "right", "both": "bilateral"}
    seen = 0
    for study, refined in zip(STUDIES, phantom_readings, strict=True):
        for name in ("consolidation", "atelectasis", "pleural_effusion", "pneumothorax"):
            if study[f"severity.{name}"] == 0:
                continue
            (mention,) = (mention for mention in refined.mentions if mention.finding == name)
            place = sides[SIDES[int(study[f"side.{name}"])]]
            if f"zone.{name}" in study:
                place = f"{place} {ZONES[int(study[f'zone.{name}'])]}"
            assert mention.location == place
            if mention.severity:
                severity = study[f"severity.{name}"]
                assert mention.severity == (
                    "mild" if severity < 0.45 else "moderate" if severity < 0.75 else "severe"
                )
                seen += 1
    assert seen > 300


def test_the_real_reports_agree_with_their_headings(real_data):
    """Acceptance: macro F1 over the ten commonest findings at least 0.80; here on all of the reports."""
    reports = IuXray().listing(resolve(real_data / "iu_xray_reports")).reports
    assert reports is not None
    table = agreement(
        [refined.findings for refined in REFINER.refine(reports["report"].to_pylist())],
        reports["findings"].to_pylist(),
    )
    assert table.reports == 3955
    assert table.macro_f1(10) >= 0.90, table.text()
    assert all(row.f1 >= 0.80 for row in table.findings if row.labelled_present >= 40), table.text()
