"""The vocabulary's maps, and what becomes of uncertain labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from counterray.config import ConfigError, validate
from counterray.data.labels import FINDINGS, LabelMap, apply_uncertainty, label_map

MAPS = ("nih_cxr14", "covid_cxr", "chexpert", "mimic_cxr", "padchest", "iu_xray")

VALUES = np.array([1.0, 0.0, -1.0, np.nan])


@pytest.mark.parametrize(
    ("policy", "labels", "mask"),
    [
        ("ignore", [1, 0, 0, 0], [True, True, False, False]),
        ("zeros", [1, 0, 0, 0], [True, True, True, False]),
        ("ones", [1, 0, 1, 0], [True, True, True, False]),
        ("keep", [1, 0, -1, 0], [True, True, True, False]),
    ],
)
def test_each_policy_by_hand(policy, labels, mask):
    got, counted = apply_uncertainty(VALUES, policy)
    assert got.tolist() == labels
    assert counted.tolist() == mask
    assert VALUES[2] == -1, "the stored labels are left as they were"


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match="ignore, zeros, ones, keep"):
        apply_uncertainty(VALUES, "guess")


def test_a_value_that_is_no_label_is_refused():
    with pytest.raises(ValueError, match="none of 1"):
        apply_uncertainty(np.array([0.5]), "ignore")


@pytest.mark.parametrize("source", MAPS)
def test_every_shipped_map_reads_its_normal_image_as_normal(source):
    mapping = label_map(source)
    findings = mapping.findings([mapping.no_finding])
    assert findings["no_finding"] == 1
    assert {value for name, value in findings.items() if name != "no_finding"} == {0}
    assert set(findings) == set(mapping.covered)


def test_nih_labels_imply_their_parents_and_deny_the_rest():
    findings = label_map("nih_cxr14").findings(["Pneumonia", "Hernia"])
    assert findings == {
        "no_finding": 0,
        "cardiomegaly": 0,
        "lung_opacity": 1,
        "lung_lesion": 0,
        "edema": 0,
        "consolidation": 0,
        "pneumonia": 1,
        "atelectasis": 0,
        "pneumothorax": 0,
        "pleural_effusion": 0,
        "pleural_other": 0,
    }
    assert "fracture" not in findings, "NIH does not label fractures: that is unknown, not absent"


def test_a_finding_outside_of_the_vocabulary_still_makes_the_image_abnormal():
    assert label_map("nih_cxr14").findings(["Hernia"])["no_finding"] == 0


def test_covid_diagnoses_leave_what_they_do_not_name_unknown():
    assert label_map("covid_cxr").findings(["COVID-19"]) == {"pneumonia": 1, "no_finding": 0}
    assert label_map("covid_cxr").findings([]) == {}


def test_a_list_said_to_be_incomplete_denies_nothing():
    mapping = label_map("padchest")
    assert mapping.findings(["unchanged"]) == {}
    assert mapping.findings(["unchanged", "pneumothorax"]) == {"pneumothorax": 1, "no_finding": 0}


def test_borderline_is_uncertain_and_certainty_wins():
    mapping = label_map("iu_xray")
    assert mapping.findings([], uncertain=["Cardiomegaly"])["cardiomegaly"] == -1
    assert mapping.findings(["Cardiomegaly"], uncertain=["Cardiomegaly"])["cardiomegaly"] == 1


def test_unknown_labels_are_named():
    assert label_map("nih_cxr14").unknown(["Edema", "No Finding", "Dragon"]) == {"Dragon"}


def test_columns_are_read_with_blank_as_unknown():
    mapping = label_map("chexpert")
    table = pd.DataFrame({name: ["", "1.0"] for name in mapping.columns}, dtype=object)
    table.loc[0, "Edema"], table.loc[0, "Fracture"] = "-1.0", "0.0"
    rows = mapping.table_findings(table)
    assert rows[0] == {"edema": -1, "fracture": 0}
    assert rows[1] == dict.fromkeys(FINDINGS, 1)


def test_a_column_with_another_value_is_refused():
    mapping = label_map("chexpert")
    table = pd.DataFrame({name: ["2"] for name in mapping.columns})
    with pytest.raises(ValueError, match="label column"):
        mapping.table_findings(table)


def test_a_map_to_no_finding_of_the_vocabulary_is_refused():
    values = {"reference": "x", "unmentioned": "absent", "no_finding": "n", "labels": {"A": ["dragon"]}}
    with pytest.raises(ConfigError, match="dragon"):
        validate(LabelMap, values)
