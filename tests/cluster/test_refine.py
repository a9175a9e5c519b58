"""The refine job on a real Ray: the phantom end to end, real reports without images, an endpoint, a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterray.config import validate
from counterray.data.chunks import write_shard
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset, open_dataset
from counterray.data.ingest import IngestConfig, ingest
from counterray.data.study import ARROW_SCHEMA
from counterray.reports import llm
from counterray.reports.refine import RefineError
from counterray.reports.rules import RulesRefiner
from counterray.reports.transform import RefineConfig
from counterray.storage import StorageError, resolve
from jobs.refine import _summary as summary
from jobs.refinement import refine
from tests.cluster.commands import command, finish, start
from tests.llm_server import KEY, MODEL, Reply, by_rules, serving
from tests.phantom_dataset import write_dataset

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

LLM = validate(RefineConfig, {"refiner": {"name": "llm", "retries": 1}})


def studies(dataset: Dataset) -> dict[str, dict]:
    paths = [path for split in dataset.manifest.shards for path in dataset.shard_paths(split)]
    return {row["image_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("*.parquet"))}


def test_the_phantom_end_to_end_and_its_idle_repetition(phantom_dataset, tmp_path):
    out = tmp_path / "refined"
    result = refine(RefineConfig(), data=phantom_dataset.location.uri, out=str(out))
    dataset = open_dataset(str(out))
    before, after = studies(phantom_dataset), studies(dataset)
    assert set(after) == set(before)
    for image_id, row in after.items():
        (expected,) = RulesRefiner().refine([before[image_id]["report"]])
        assert row == {**before[image_id], "refined_report": expected.prompt}
    assert result["reports"] == result["refined"] == len(before)
    assert (result["fell_back"], result["cached"]) == ({}, 0)
    assert result["agreement"] > 0.95
    assert result["fingerprint"] == dataset.manifest.fingerprint != phantom_dataset.manifest.fingerprint
    assert dataset.manifest.counts == phantom_dataset.manifest.counts
    for split in dataset.manifest.shards:
        for path in dataset.shard_paths(split):
            groups = pq.read_metadata(path)
            sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
            assert set(sizes[:-1]) <= {ROW_GROUP_ROWS}
    table = json.loads((out / "agreement.json").read_text())
    assert table["macro_f1_ten_commonest"] == pytest.approx(result["agreement"], abs=1e-4)
    written = times(out)
    assert refine(RefineConfig(), data=phantom_dataset.location.uri, out=str(out)) == result
    assert times(out) == written


def test_reports_that_do_not_describe_the_image_are_counted(ray_cluster, tmp_path):
    rows = ["Cardiomegaly.", "INDICATION: Pneumonia?", "TECHNIQUE: PA."], ["COMPARISON: None.", None, None]
    data = [write_dataset(tmp_path / str(number), train=3) for number in range(2)]
    for dataset, reports in zip(data, rows, strict=True):
        told = studies(dataset).values()
        table = pa.Table.from_pylist(
            [{**row, "report": text} for row, text in zip(told, reports, strict=True)], ARROW_SCHEMA
        )
        shard = write_shard(dataset.location, "train", "00000", table)
        changed = dataset.manifest.model_copy(update={"shards": {"train": (shard,)}})
        (dataset.location / "manifest.json").write_json(changed.model_dump(mode="json"))
    out = tmp_path / "refined"
    result = refine(RefineConfig(), data=data[0].location.uri, out=str(out))
    assert (result["reports"], result["undescribed"], result["refined"]) == (1, 2, 1)
    assert [row["refined_report"] for row in studies(open_dataset(str(out))).values()] == [
        "Cardiomegaly.",
        None,
        None,
    ]
    assert "do not describe the image: 2, without a prompt" in summary(result)
    with pytest.raises(StorageError, match="has no report that describes an image"):
        refine(RefineConfig(), data=data[1].location.uri, out=str(tmp_path / "silent"))


def test_labels_from_reports_are_in_shards_and_manifest(phantom_dataset, tmp_path):
    config = RefineConfig(labels="unmentioned_absent")
    refine(config, data=phantom_dataset.location.uri, out=str(tmp_path))
    before, after = phantom_dataset.manifest, open_dataset(str(tmp_path)).manifest
    assert set(before.finding_names) < set(after.finding_names)
    rows = studies(open_dataset(str(tmp_path))).values()
    for split, counts in after.counts.items():
        known = before.counts[split]["findings"]
        assert {name: counts["findings"][name] for name in known} == known, "the source's labels stay"
        assert {**counts, "findings": 0} == {**before.counts[split], "findings": 0}
        for name, found in counts["findings"].items():
            labels = Counter(row["findings"][name] for row in rows if row["split"] == split)
            assert [found[key] for key in ("present", "absent", "uncertain", "unknown")] == [
                labels[value] for value in (1, 0, -1, None)
            ]


@pytest.fixture(scope="module")
def real_reports(real_data, ray_cluster, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("iu") / "dataset"
    ingest(validate(IngestConfig, {"source": "iu_xray"}), str(real_data / "iu_xray_reports"), str(out))
    return out


def test_the_real_reports_without_images(real_reports, tmp_path):
    out = tmp_path / "refined"
    result = refine(RefineConfig(), data=str(real_reports), out=str(out))
    assert result["agreement"] >= 0.90
    before, after = pq.read_table(real_reports / "reports.parquet"), pq.read_table(out / "reports.parquet")
    assert after.drop_columns(["refined_report"]).equals(before)
    assert result["reports"] == len(after) - after["refined_report"].null_count > 3900
    written = times(out)
    assert refine(RefineConfig(), data=str(real_reports), out=str(out)) == result
    assert times(out) == written


def test_an_endpoint_s_answers_fallbacks_and_cache(phantom_dataset, tmp_path, monkeypatch):
    rules = refine(RefineConfig(), data=phantom_dataset.location.uri, out=str(tmp_path / "rules"))
    with serving() as server:
        environment = {llm.BASE_URL: server.url, llm.MODEL: MODEL, llm.API_KEY: KEY}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        values = {"refiner": {"name": "llm", "retries": 1}, "cache": str(tmp_path / "answers")}
        config = validate(RefineConfig, values)
        with pytest.raises(RefineError, match=rf"status 401.*{llm.API_KEY}"):
            # The key is the workers' own, and these workers started without one.
            refine(config, data=phantom_dataset.location.uri, out=str(tmp_path / "refused"))
        server.answer = lambda text, attempt: (
            Reply("no") if "pneumothorax" in text[:60] else by_rules(text, 1)
        )
        result = in_a_process(phantom_dataset, tmp_path / "first", environment, tmp_path / "answers")
        asked = len(server.requests)
        again = in_a_process(phantom_dataset, tmp_path / "second", environment, tmp_path / "answers")
    assert 0 < result["fell_back"]["invalid"] < 120
    assert result["refined"] + result["fell_back"]["invalid"] == result["reports"] == 600
    assert result["agreement"] == pytest.approx(rules["agreement"]), "the endpoint answers by the rules"
    assert again["fell_back"] == result["fell_back"]
    assert again["cached"] == result["refined"]
    assert len(server.requests) - asked < 120, "only what has no answer is asked again"
    assert again["fingerprint"] == result["fingerprint"]
    texts = [row["report"] for row in studies(phantom_dataset).values()]
    stored = "".join(path.read_text() for path in (tmp_path / "answers").rglob("*.json"))
    assert not any(text in stored for text in texts)


def in_a_process(dataset: Dataset, out: Path, environment: dict[str, str], cache: Path) -> dict:
    options = ("--refiner", "llm", "--set", f"cache={cache}", "--set", "refiner.concurrency=4")
    line = command("refine", "--data", dataset.location.uri, "--out", str(out), *options)
    output, errors = finish(line, environment)
    assert "pneumothorax" not in errors
    return json.loads(output.splitlines()[-1])


def test_what_cannot_be_refined_is_refused(phantom_dataset, tmp_path, monkeypatch):
    monkeypatch.delenv(llm.BASE_URL, raising=False)
    with pytest.raises(RefineError, match=llm.BASE_URL):
        refine(LLM, data=phantom_dataset.location.uri, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(StorageError, match="holds files"):
        refine(RefineConfig(), data=phantom_dataset.location.uri, out=str(tmp_path / "mine"))


@pytest.mark.nightly
def test_killed_half_way_and_run_again_gives_the_same(ray_cluster, tmp_path):
    settings = {"source": {"name": "phantom", "studies": 600}, "image_size": 32, "shard_rows": 20}
    ingest(validate(IngestConfig, settings), None, str(tmp_path / "data"))
    out = tmp_path / "killed"
    line = command("refine", "--data", str(tmp_path / "data"), "--out", str(out))
    process = start(line, start_new_session=True, stdout=None, stderr=None)
    try:
        while process.poll() is None and len(list((out / "index").glob("0*.json"))) < 3:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    written = {path: path.stat().st_mtime_ns for path in (out / "index").glob("0*.json")}
    assert len(written) >= 3
    assert not (out / "manifest.json").exists()
    time.sleep(
        1
    )  # Ray's workers are no children of ours; what they still write is whole, or it is not there.
    resumed = refine(RefineConfig(), data=str(tmp_path / "data"), out=str(out))
    whole = refine(RefineConfig(), data=str(tmp_path / "data"), out=str(tmp_path / "whole"))
    assert {**resumed, "dataset": ""} == {**whole, "dataset": ""}
    assert open_dataset(str(out)).manifest == open_dataset(str(tmp_path / "whole")).manifest
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())


def test_from_s3_to_s3(phantom_dataset, tmp_path, make_bucket):
    """By the command line: its Ray starts with the S3 settings, as a worker's environment must have them."""
    bucket = make_bucket()
    source = resolve(f"{bucket}/data")
    for name in phantom_dataset.location.files():
        (source / name).write_bytes((phantom_dataset.location / name).read_bytes())
    output, _ = finish(command("refine", "--data", source.uri, "--out", f"{bucket}/out"))
    local = refine(RefineConfig(), data=phantom_dataset.location.uri, out=str(tmp_path / "local"))
    result = json.loads(output.splitlines()[-1])
    assert result["fingerprint"] == local["fingerprint"]
    assert open_dataset(f"{bucket}/out").rows("train") == phantom_dataset.rows("train")
