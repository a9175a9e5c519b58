"""The table of agreement, by hand."""

from __future__ import annotations

import json

import pytest

from counterray.reports.agreement import agreement, combined, from_plain

READ = [{"edema": 1}, {"edema": 1}, {"edema": 0}, {}, {"edema": -1}, {"edema": 1}, {"edema": 1}]
LABELS = [{"edema": value} for value in (1, 0, 1, 0, 1, None, -1)]


@pytest.mark.parametrize(
    ("policy", "counts", "precision", "recall", "f1"),
    [
        ("zeros", (1, 1, 2, 1), 1 / 2, 1 / 3, 2 / 5),
        ("ones", (2, 1, 1, 1), 2 / 3, 2 / 3, 2 / 3),
        ("ignore", (1, 1, 1, 1), 1 / 2, 1 / 2, 1 / 2),
    ],
)
def test_counts_and_ratios_by_hand(policy, counts, precision, recall, f1):
    (row,) = agreement(READ, LABELS, uncertain=policy).findings
    assert (
        row.true_positives,
        row.false_positives,
        row.false_negatives,
        row.true_negatives,
    ) == counts
    assert row.precision == pytest.approx(precision)
    assert row.recall == pytest.approx(recall)
    assert row.f1 == pytest.approx(f1)
    assert row.uncertain == (0 if policy == "ignore" else 1)


def test_the_macro_average_takes_the_commonest_and_leaves_normal_out():
    read = [{"edema": 1}, {"edema": 1, "fracture": 0}, {"no_finding": 1}, {"pneumonia": 1}]
    labels = [
        {"edema": 1, "fracture": 0},
        {"edema": 1, "fracture": 1},
        {"no_finding": 0, "edema": 0},
        {"pneumonia": 0},
    ]
    table = agreement(read, labels)
    assert [row.finding for row in table.findings][:2] == ["edema", "fracture"]
    assert table.macro_f1(1) == 1
    assert table.macro_f1(2) == table.macro_f1() == 0.5, "pneumonia is never labelled present"


def test_a_ratio_over_nothing_is_null_in_json_and_a_dash_in_text():
    table = agreement([{}], [{"edema": 0}])
    plain = json.loads(json.dumps(table.plain(), allow_nan=False))
    assert plain["findings"][0]["precision"] is None
    assert plain["macro_f1"] is None
    assert plain["reports"] == 1
    assert "nan" not in table.text().splitlines()[1]


def test_tables_of_parts_add_up_to_the_table_of_the_whole():
    read = [*READ, {"fracture": 1}, {"edema": 1}]
    labels = [*LABELS, {"fracture": 1, "edema": 0}, {"edema": 1, "fracture": 1}]
    whole = agreement(read, labels)
    parts = [agreement(read[start : start + 3], labels[start : start + 3]) for start in (0, 3, 6)]
    assert combined(parts) == whole
    assert combined([from_plain(json.loads(json.dumps(part.plain()))) for part in parts]) == whole
    assert combined([]).findings == ()


def test_nothing_labelled_is_an_empty_table():
    assert agreement([{"edema": 1}], [{"edema": None}]).findings == ()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 readings and 1 sets"):
        agreement([{}, {}], [{}])
    with pytest.raises(ValueError, match="zeros, ones, ignore"):
        agreement([], [], uncertain="keep")
