"""What a worker of the refine job does with a table."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pyarrow as pa
import pytest

from counterray.config import validate
from counterray.data.labels import FINDINGS
from counterray.reports import llm
from counterray.reports.llm import PROMPT_VERSION, Endpoint
from counterray.reports.refine import RefineError
from counterray.reports.transform import RefineConfig, RefineTransform, fallbacks
from counterray.storage import resolve
from tests.llm_server import KEY, MODEL, Reply, by_rules, serving

needs_openai = pytest.mark.skipif(find_spec("openai") is None, reason="the llm refiner is an extra")

ROWS = {
    "patient_id": ["a", "a", "b", "c", "d"],
    "report": ["Cardiomegaly.", "Cardiomegaly.", "Possible edema.", None, "  "],
    "findings": [{"cardiomegaly": 1, "edema": 0}] * 2 + [{"cardiomegaly": 1, "edema": -1}] * 3,
}


def table(**columns) -> pa.Table:
    return pa.table({**ROWS, **columns})


def test_the_column_is_filled_where_there_is_a_report(tmp_path):
    refined, counts = RefineTransform(RefineConfig(), None, resolve(tmp_path))(table())
    assert refined["refined_report"].to_pylist() == ["Cardiomegaly."] * 2 + ["Possible edema.", None, None]
    assert refined.drop_columns(["refined_report"]) == table()
    assert counts["reports"] == 3
    assert counts["events"] == {}
    assert json.loads(json.dumps(counts)) == counts


def test_a_report_of_several_images_counts_once_in_the_agreement(tmp_path):
    _, counts = RefineTransform(RefineConfig(), None, resolve(tmp_path))(table())
    rows = {row["finding"]: row for row in counts["agreement"]["findings"]}
    assert counts["agreement"]["reports"] == 2
    assert (rows["cardiomegaly"]["true_positives"], rows["cardiomegaly"]["false_negatives"]) == (1, 1)
    assert rows["edema"]["true_negatives"] == 1, "an uncertain label does not count"


def test_a_column_that_is_there_is_replaced_at_its_place(tmp_path):
    before = table(refined_report=pa.array([None] * 5, pa.string()), last=range(5))
    refined, _ = RefineTransform(RefineConfig(), None, resolve(tmp_path))(before)
    assert refined.schema == before.schema
    assert refined["refined_report"].null_count == 2


@pytest.mark.parametrize(
    ("labels", "fracture", "counted"),
    [("mentioned", [None] * 5, {}), ("unmentioned_absent", [0, 0, 0, None, None], {"absent": 3})],
)
def test_labels_that_the_source_leaves_open_come_from_the_report(tmp_path, labels, fracture, counted):
    nothing = dict.fromkeys(FINDINGS)
    known = [{**nothing, "cardiomegaly": 0}, nothing, nothing, nothing, nothing]
    types = pa.struct([(name, pa.int8()) for name in FINDINGS])
    transform = RefineTransform(RefineConfig(labels=labels), None, resolve(tmp_path))
    refined, counts = transform(table(findings=pa.array(known, types)))
    column = {name: [row[name] for row in refined["findings"].to_pylist()] for name in FINDINGS}
    assert column["cardiomegaly"][:2] == [0, 1], "the source's label stays, the open one is read"
    assert column["edema"][2:] == [-1, None, None]
    assert column["fracture"] == fracture
    none = {"present": 0, "absent": 0, "uncertain": 0, "unknown": 2}
    assert counts["labels"].get("fracture", {}) == ({**none, **counted} if counted else {})
    assert json.loads(json.dumps(counts)) == counts


@pytest.mark.parametrize("labels", ["keep", "mentioned", "unmentioned_absent"])
def test_a_report_that_does_not_describe_the_image_gives_no_prompt_and_no_label(tmp_path, labels):
    """Silence is no normal image: neither "No acute finding." nor the absence of what it does not mention."""
    texts = [
        "INDICATION: Pneumonia?\nTECHNIQUE: PA and lateral.",
        "FINDINGS: ...",
        "Cardiomegaly.",
        None,
        " ",
    ]
    nothing = dict.fromkeys(FINDINGS)
    types = pa.struct([(name, pa.int8()) for name in FINDINGS])
    rows = table(report=texts, findings=pa.array([nothing] * 5, types))
    refined, counts = RefineTransform(RefineConfig(labels=labels), None, resolve(tmp_path))(rows)
    assert refined["refined_report"].to_pylist() == [None, None, "Cardiomegaly.", None, None]
    found = refined["findings"].to_pylist()
    assert [found[row] for row in (0, 1, 3, 4)] == [nothing] * 4
    assert found[2]["cardiomegaly"] == (None if labels == "keep" else 1)
    assert (counts["reports"], counts["undescribed"]) == (1, 2)
    assert counts["agreement"]["reports"] == 1


@needs_openai
def test_too_many_fallbacks_end_the_work_and_the_limit_may_be_raised(tmp_path, monkeypatch):
    monkeypatch.setenv(llm.API_KEY, KEY)
    texts = [f"Edema on film {number}." for number in range(40)]
    rows = pa.table({"patient_id": texts, "report": texts, "findings": [{"edema": 1}] * 40})
    with serving() as server:
        server.answer = lambda text, attempt: Reply("no") if "film 1" in text else by_rules(text, attempt)
        endpoint = Endpoint(server.url, MODEL)

        def make(limit: float) -> RefineTransform:
            values = {"refiner": {"name": "llm"}, "max_fell_back_fraction": limit}
            return RefineTransform(validate(RefineConfig, values), endpoint, resolve(tmp_path))

        with pytest.raises(RefineError, match=r"11 of 40 .*invalid 11.*max_fell_back_fraction is 20%"):
            make(0.2)(rows)
        _, counts = make(0.5)(rows)
    assert fallbacks(counts["events"]) == {"invalid": 11}
    assert counts["events"]["cached"] == 29, "answers of the failed attempt stay"


def test_only_what_decides_the_result_is_in_the_settings():
    rules = RefineConfig().content_settings(None)
    assert rules == RefineConfig(cache="elsewhere", max_fell_back_fraction=1).content_settings(None)
    assert set(rules) == {"refiner", "lexicon"}
    config = validate(RefineConfig, {"refiner": {"name": "llm", "concurrency": 3}})
    asked = config.content_settings(Endpoint("http://here/v1", "m"))
    assert asked == {**rules, "refiner": "llm", "model": "m", "instructions": PROMPT_VERSION}
    assert asked == config.content_settings(Endpoint("http://there/v1", "m")), "a model may move"
