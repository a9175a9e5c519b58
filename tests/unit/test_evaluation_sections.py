from __future__ import annotations

import math

import torch

from counterray.data.dataset import DatasetManifest
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.generator import Evaluation
from counterray.evaluation.generator_report import generator_report
from counterray.evaluation.metric import Metric
from counterray.evaluation.metric_sections import metric_card, metric_table, metrics_section
from counterray.evaluation.report import Missing, Report
from counterray.evaluation.sections import (
    counterfactual_section,
    curves_section,
    dataset_section,
    findings_text,
    instructive_rows,
    provenance_section,
)
from counterray.evaluation.text_condition import TextCondition
from counterray.evaluation.wording import words

NAMES = ("edema", "pleural_effusion")


def batch(findings: list[list[float]], known: bool = True) -> Batch:
    count = len(findings)
    return Batch(
        image=torch.zeros(count, 1, 16, 16),
        attributes={},
        findings=torch.tensor(findings),
        finding_mask=torch.full((count, 2), known),
        finding_names=NAMES,
        image_ids=tuple(f"SECRET-IMAGE-{row}" for row in range(count)),
        patient_ids=tuple(f"SECRET-PATIENT-{row}" for row in range(count)),
        reports=("SECRET-REPORT",) * count,
    )


def made() -> Counterfactuals:
    source = batch([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    donor = batch([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return Counterfactuals(
        source=source, donor=donor, image=source.image, reconstruction=source.image, exact=donor.image
    )


def manifest() -> DatasetManifest:
    counts = {
        "studies": 3,
        "patients": 2,
        "findings": {"edema": {"present": 1, "absent": 2, "uncertain": 0, "unknown": 0}},
        "sex": {"female": 3},
        "age_band": {"18-39": 2, "unknown": 1},
    }
    return DatasetManifest(
        study_schema=1,
        source="phantom",
        config={},
        code_version="1",
        image_size=16,
        finding_names=NAMES,
        vocabulary={},
        counts={"train": counts, "test": {**counts, "sex": {"male": 3}}},
        quarantined={"corrupt": 2},
        shards={},
        fingerprint="f",
    )


def metric(**changes: object) -> Metric:
    fields: dict[str, object] = {
        "name": "ground_truth_error",
        "value": 0.0321,
        "low": 0.03,
        "high": 0.035,
        "n": 7,
        "direction": "lower",
        "unit": "of grey range",
    }
    return Metric(**{**fields, **changes})


def report() -> Report:
    evaluation = Evaluation([metric()], made(), {"identity": "no identity encoder was given to score"})
    return generator_report(
        evaluation,
        title="gsvae",
        subtitle="s",
        manifest=manifest(),
        facts={"Code version": "1.2.3"},
        bundles={"gsvae": "c0ffee"},
        config={"optimizer": {"lr": 3e-4}},
        records={"gsvae": [{"split": "train", "step": 0, "time": 1.0, "total": 2.0}]},
    )


def test_the_report_holds_no_identifier_and_no_report_text() -> None:
    page = report().render()
    assert "SECRET" not in page
    assert "Patient A" in page
    assert "Synthetic images" in page


def test_the_report_says_what_was_not_computed_and_where_it_comes_from() -> None:
    page = report().render()
    assert "Not computed: identity, because no identity encoder was given to score." in page
    for word in ("1.2.3", "c0ffee", "optimizer.lr", "0.0003", "Limits", "Training: gsvae"):
        assert word in page


def test_words() -> None:
    assert words("pleural_effusion") == "Pleural effusion"
    assert words("auroc_macro") == "AUROC macro"
    assert words("identity_top1") == "Identity top-1"


def test_findings_in_words() -> None:
    assert findings_text(batch([[1.0, 1.0]]), 0) == "edema, pleural effusion"
    assert findings_text(batch([[0.0, 0.0]]), 0) == "no finding"
    assert findings_text(batch([[1.0, 0.0]], known=False), 0) == "findings not known"


def test_rows_shown_are_those_in_which_something_changes() -> None:
    # Edema appears in row 3 (alone) and 1, effusion appears in 1, effusion goes in 2; row 0 changes nothing.
    assert instructive_rows(made()) == [3, 1, 2]


def test_rows_shown_when_nothing_changes() -> None:
    same = batch([[0.0, 0.0]] * 3)
    idle = Counterfactuals(source=same, donor=same, image=same.image, reconstruction=same.image)
    assert instructive_rows(idle, count=2) == [0, 1]


def test_captions_name_patients_by_letters() -> None:
    [grid] = counterfactual_section(made()).blocks
    assert grid.rows[0].caption == (
        "Patient A (pleural effusion) + pathology of patient B: edema, pleural effusion"
    )
    assert grid.columns[-2:] == ["Exact counterfactual", "Its direct effect"]


def condition(*, synthetic: bool) -> TextCondition:
    prompts = ("SECRET-PROMPT 0", "", "SECRET-PROMPT 2", "SECRET-PROMPT 3")
    return TextCondition(source="refined_report", prompts=prompts, synthetic=synthetic)


def test_words_of_real_patients_stay_out_of_the_report() -> None:
    section = counterfactual_section(made(), condition=condition(synthetic=False))
    page = Report("t").add(section).render()
    assert "SECRET" not in page
    assert "what a refiner kept of the donor&#39;s report" in page
    assert "1 of 4 donors have no text" in page


def test_words_of_simulated_patients_stand_below_their_pictures() -> None:
    text, grid = counterfactual_section(made(), condition=condition(synthetic=True)).blocks
    assert grid.rows[0].caption.endswith("; told “SECRET-PROMPT 3”")
    assert grid.rows[1].caption.endswith("; told no words")
    assert "not shown" not in text.paragraphs[0]


def test_findings_side_by_side_have_intervals_or_a_dash() -> None:
    numbers = [
        metric(name="real_auroc", subset="edema", value=0.9, low=0.8, high=0.95, judge="c:1"),
        metric(name="effectiveness_auroc", subset="edema", value=0.8, low=math.nan, high=math.nan),
        metric(name="real_auroc", subset="pleural_effusion", value=math.nan, judge="c:1"),
    ]
    blocks = metrics_section(Evaluation(numbers, made())).blocks
    [table] = [block for block in blocks if getattr(block, "caption", "") == "Finding by finding"]
    assert table.columns == ["Finding", "Images", "AUROC, real", "AUROC, made"]
    assert table.rows == [
        ["Edema", 3, "0.90 (0.80–0.95)", "0.80"],
        ["Pleural effusion", 2, "–", "–"],
    ]


def test_card_shows_a_share_in_percent_and_its_judge() -> None:
    card = metric_card(metric(judge="segmentor:12"))
    assert (card.value, card.unit) == ("3.2", "%")
    assert card.detail == "of grey range, 95 % interval 3.0 to 3.5, 7 images, judge segmentor:12"


def test_table_gives_the_reason_in_place_of_a_missing_number() -> None:
    nan = metric(value=math.nan, low=math.nan, high=math.nan, note="no image", subset="left_lung", n=0)
    table = metric_table([nan])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["Value"] == Missing("no image")
    assert row["Metric"] == "Ground truth error, left lung"
    assert row["Better"] == "↓ lower"
    assert "Note" not in row
    assert "95 % interval" not in row


def test_dataset_counts_by_split() -> None:
    section = dataset_section(manifest())
    rows = {row[0]: list(row[1:]) for row in section.blocks[0].rows}
    assert rows["Images"] == [3, 3]
    assert rows["Positive for edema"] == [1, 1]
    assert rows["Sex female"] == [3, 0]
    assert rows["Age 18–39 years"] == [2, 2]
    assert section.blocks[1].rows == [["Corrupt", 2]]


def test_curves_group_families_and_sort_steps() -> None:
    records = [
        {"split": "train", "step": 2, "epoch": 0, "time": 9.0, "total": 1.0},
        {"split": "train", "step": 1, "epoch": 0, "time": 8.0, "total": 2.0},
        {"split": "validation", "step": 2, "total": 1.5, "auroc.edema": 0.7, "auroc.fracture": math.nan},
    ]
    [curves] = curves_section(records).blocks
    total, auroc = curves.panels
    assert [(line.name, line.x, line.y) for line in total.lines] == [
        ("train", [1.0, 2.0], [2.0, 1.0]),
        ("validation", [2.0], [1.5]),
    ]
    assert [line.name for line in auroc.lines] == ["edema validation"]


def test_a_log_without_numbers_gives_no_curves() -> None:
    assert curves_section([]).shown == []


def test_provenance_shows_bundles_and_flat_settings() -> None:
    config = {"a": {"b": [1, 2], "c": "x"}}
    [facts, settings] = provenance_section({"Seeds": "0"}, bundles={"judge": "3f"}, config=config).blocks
    assert list(facts.items) == [("Seeds", "0"), ("Bundle judge", "3f")]
    assert settings.items == [("a.b", "[1, 2]"), ("a.c", "x")]
