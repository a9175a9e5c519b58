"""Ingest on a real Ray: what it writes, sets aside, resumes and refuses."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from counterray.config import validate
from counterray.data.dataset import DatasetManifest, open_dataset
from counterray.data.ingest import IngestConfig, IngestError, ingest
from counterray.data.sources import SourceError
from counterray.storage import StorageError, resolve
from tests.radiographs import image_bytes, radiograph, write_image

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

IMAGES = 24


def config(**changes) -> IngestConfig:
    source = {"name": "table", "file": "all.csv", "columns": {"view": "view"}}
    return validate(IngestConfig, {"source": source, "shard_rows": 8, **changes})


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "source"
    lines = ["path,patient_id,view"]
    for seed in range(IMAGES):
        write_image(folder / f"{seed:02d}.png", seed, 80, 64)
        lines.append(f"{seed:02d}.png,p{seed // 2},{'PA' if seed % 4 else 'LL'}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return folder


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("part-*.parquet"))}


def quarantine(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "quarantine.parquet")
    return dict(zip(table["image_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def studies(out: Path) -> dict[str, str]:
    """Image to split, from the shards themselves."""
    dataset = open_dataset(str(out))
    found = {}
    for split in dataset.manifest.shards:
        for path in dataset.shard_paths(split):
            found.update(dict.fromkeys(pq.read_table(path)["image_id"].to_pylist(), split))
    return found


def test_an_ingest_and_its_idle_repetition(root, tmp_path, caplog):
    out = tmp_path / "out"
    first = ingest(config(), str(root), str(out))
    assert sum(split["studies"] for split in first.counts.values()) == IMAGES
    assert set(studies(out)) == {f"{seed:02d}.png" for seed in range(IMAGES)}
    assert quarantine(out) == {}
    before = times(out)
    with caplog.at_level(logging.INFO):
        again = ingest(config(), str(root), str(out))
    assert again == first == open_dataset(str(out)).manifest
    assert times(out) == before
    assert "3 of 3 chunks are there already" in caplog.text


def test_the_fingerprint_does_not_depend_on_the_cutting(root, tmp_path):
    whole = ingest(config(shard_rows=100), str(root), str(tmp_path / "whole"))
    cut = ingest(config(shard_rows=5), str(root), str(tmp_path / "cut"))
    assert whole.fingerprint == cut.fingerprint
    assert whole.counts == cut.counts
    other = ingest(config(fit="crop"), str(root), str(tmp_path / "other"))
    assert other.fingerprint != whole.fingerprint


def test_bad_images_are_set_aside_with_their_reason(root, tmp_path):
    bad = radiograph(3).astype(np.float32) / 255
    bad[0, 0] = np.nan
    (root / "03.png").write_bytes(image_bytes(bad, "TIFF"))
    (root / "05.png").write_bytes((root / "05.png").read_bytes()[:-300])
    (root / "07.png").write_bytes(image_bytes(np.full((80, 64), 9, np.uint8)))
    (root / "09.png").unlink()
    shutil.copy(root / "02.png", root / "20.png")
    (root / "11.png").write_bytes(image_bytes(radiograph(1, 16, 64)))
    out = tmp_path / "out"
    manifest = ingest(config(max_quarantined_fraction=0.5), str(root), str(out))
    reasons = {
        "03.png": "not_finite",
        "05.png": "unreadable",
        "07.png": "constant",
        "09.png": "missing_image",
        "11.png": "too_small",
        "20.png": "duplicate",
    }
    assert quarantine(out) == reasons
    assert manifest.quarantined == dict.fromkeys(reasons.values(), 1)
    assert set(studies(out)) == {f"{seed:02d}.png" for seed in range(IMAGES)} - set(reasons)
    again = ingest(config(max_quarantined_fraction=0.5), str(root), str(out))
    assert again == manifest, "setting duplicates aside is done once"


def test_too_many_bad_images_are_an_error_and_the_limit_may_be_raised(root, tmp_path):
    for seed in range(4):
        (root / f"{seed:02d}.png").write_bytes(b"broken")
    out = tmp_path / "out"
    with pytest.raises(IngestError, match=r"4 of 24 images \(16.7%\).*max_quarantined_fraction is 5.0%"):
        ingest(config(), str(root), str(out))
    assert len(quarantine(out)) == 4
    with pytest.raises(StorageError, match="no dataset"):
        open_dataset(str(out))
    before = times(out)
    manifest = ingest(config(max_quarantined_fraction=0.2), str(root), str(out))
    assert manifest.quarantined == {"unreadable": 4}
    assert times(out) == before, "what was written stayed"


def test_a_mended_image_comes_in_and_a_widowed_duplicate_returns(root, tmp_path):
    shutil.copy(root / "00.png", root / "23.png")
    out = tmp_path / "out"
    assert ingest(config(), str(root), str(out)).quarantined == {"duplicate": 1}
    before = times(out)
    write_image(root / "00.png", 500)
    manifest = ingest(config(), str(root), str(out))
    assert manifest.quarantined == {}
    assert len(studies(out)) == IMAGES
    assert len(times(out)) == sum(map(len, manifest.shards.values())), "shards of the earlier state are gone"
    kept = [path for path, written in times(out).items() if before.get(path) == written]
    assert any("00001-" in path for path in kept), "the chunk between the two was not touched"
    fresh = ingest(config(), str(root), str(tmp_path / "fresh"))
    assert manifest.fingerprint == fresh.fingerprint


def test_another_config_for_the_same_folder_is_refused_by_name(root, tmp_path):
    ingest(config(), str(root), str(tmp_path / "out"))
    with pytest.raises(IngestError, match=r"image_size was 64 and is 32; .*splits.train was 0.8 and is 0.7"):
        ingest(config(image_size=32, splits={"train": 0.7, "test": 0.2}), str(root), str(tmp_path / "out"))


def test_a_folder_with_other_files_is_left_alone(root, tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "part-mine.parquet").write_text("mine")
    with pytest.raises(IngestError, match="no ingest of ours"):
        ingest(config(), str(root), str(tmp_path / "out"))
    assert (tmp_path / "out" / "train" / "part-mine.parquet").read_text() == "mine"


def test_a_truncated_shard_is_refused_and_written_again(root, tmp_path):
    out = tmp_path / "out"
    manifest = ingest(config(), str(root), str(out))
    shard = out / manifest.shards["train"][0].file
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(StorageError, match="truncated"):
        open_dataset(str(out))
    assert ingest(config(), str(root), str(out)) == manifest
    assert open_dataset(str(out)).manifest == manifest


def test_views_that_are_not_wanted_are_counted(root, tmp_path):
    manifest = ingest(config(views=["PA"]), str(root), str(tmp_path / "out"))
    assert manifest.notes["other_view"] == IMAGES // 4
    assert sum(split["studies"] for split in manifest.counts.values()) == IMAGES - IMAGES // 4
    assert manifest.vocabulary["view"] == ("PA",)


def test_an_official_split_that_is_not_there(root, tmp_path):
    with pytest.raises(SourceError, match=r"splits\.method=hash"):
        ingest(config(splits={"method": "official"}), str(root), str(tmp_path / "out"))


def test_a_root_is_needed_and_must_exist(tmp_path):
    with pytest.raises(SourceError, match="needs --root"):
        ingest(config(), None, str(tmp_path / "out"))
    with pytest.raises(SourceError, match="no folder"):
        ingest(config(), str(tmp_path / "absent"), str(tmp_path / "out2"))


def test_a_failed_ingest_leaves_nothing_and_a_corrected_one_works(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SourceError, match=r"no table all\.csv"):
        ingest(config(), str(tmp_path), str(out))
    assert not out.exists()
    manifest = ingest(config(image_size=32), str(root), str(out))
    assert sum(split["studies"] for split in manifest.counts.values()) == IMAGES


def test_a_file_is_no_place_for_a_dataset(root, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(IngestError, match=r"--out .*out is a file; give an empty or a new folder"):
        ingest(config(), str(root), str(tmp_path / "out"))


def test_the_leak_of_the_real_nih_folders_is_mended(real_data, tmp_path):
    source = {
        "name": "table",
        "file": "metadata.csv",
        "columns": {"split": "repo_split", "labels": "labels", "sex": "sex", "age": "age"},
        "label_map": "nih_cxr14",
    }
    settings = validate(IngestConfig, {"source": source, "splits": {"method": "official"}, "shard_rows": 400})
    manifest = ingest(settings, str(real_data / "nih_cxr14_64px"), str(tmp_path / "out"))
    assert manifest.notes["patients_moved"] == 26
    assert sum(split["patients"] for split in manifest.counts.values()) == 182, "each is counted once"
    assert sum(split["studies"] for split in manifest.counts.values()) == 693


def test_the_real_dicom_files(real_data, tmp_path):
    settings = validate(
        IngestConfig, {"source": {"name": "dicom_folder", "salt": "s"}, "max_quarantined_fraction": 0.3}
    )
    manifest = ingest(settings, str(real_data / "dicom_cxr" / "dicom"), str(tmp_path / "out"))
    assert manifest.quarantined == {"not_chest": 1}
    assert sum(split["studies"] for split in manifest.counts.values()) == 4
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for identifier in (b"9RG1", b"16d7f894", b"Covid0000", b"1.2.276", b"lower", b"RG3"):
        assert identifier not in everything


def test_the_real_reports_without_images(real_data, tmp_path):
    manifest = ingest(
        validate(IngestConfig, {"source": "iu_xray"}),
        str(real_data / "iu_xray_reports"),
        str(tmp_path / "out"),
    )
    assert manifest.notes["report_only"] == 3955
    reports = pq.read_table(tmp_path / "out" / "reports.parquet")
    assert len(reports) == 3955
    assert set(reports["split"].to_pylist()) == {"train", "validation", "test"}


KILLED = """
import ray
from counterray.config import validate
from counterray.data.ingest import IngestConfig, ingest
ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False
)
ingest(validate(IngestConfig, {settings!r}), None, {out!r})
"""


@pytest.mark.slow
def test_killed_half_way_and_run_again_gives_the_same(tmp_path):
    settings = {"source": {"name": "phantom", "studies": 600}, "image_size": 64, "shard_rows": 20}
    out = tmp_path / "killed"
    script = textwrap.dedent(KILLED).format(settings=settings, out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    index = out / "index"
    try:
        while process.poll() is None and len(list(index.glob("*.parquet"))) < 3:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    written = len(list(index.glob("*.parquet")))
    assert 3 <= written < 30
    assert not (out / "manifest.json").exists()
    # Ray's workers are no children of ours; what they still write is whole, or it is not there.
    resumed = ingest(validate(IngestConfig, settings), None, str(out))
    uninterrupted = ingest(validate(IngestConfig, settings), None, str(tmp_path / "whole"))
    assert resumed == uninterrupted
    assert len(studies(out)) == 600


def test_from_s3_to_s3_gives_the_same(root, tmp_path, make_bucket):
    """By the command line: its Ray starts with the S3 settings, as a worker's environment must have them."""
    bucket = make_bucket()
    for path in root.iterdir():
        resolve(f"{bucket}/source/{path.name}").write_bytes(path.read_bytes())
    local = ingest(config(), str(root), str(tmp_path / "out"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config().model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs", "ingest", "--config", str(tmp_path / "config.yaml"), "--json"]
    command += ["--root", f"{bucket}/source", "--out", f"{bucket}/out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fingerprint"] == local.fingerprint
    assert result["dataset"] == f"{bucket}/out"
    assert result["studies"] == IMAGES
    assert open_dataset(f"{bucket}/out").manifest == local
    assert ingest(config(), f"{bucket}/source", f"{bucket}/out") == local, "nothing is left for a worker"


def test_a_worker_that_cannot_write_says_where(root, tmp_path):
    out = tmp_path / "out"
    ingest(config(), str(root), str(out))
    for split in ("train", "validation", "test"):
        shutil.rmtree(out / split, ignore_errors=True)
        (out / split).write_text("no folder")
    with pytest.raises(StorageError, match=r"Could not write .*part-0000"):
        ingest(config(), str(root), str(out))


def test_a_missing_bucket_is_named(root, make_bucket):
    make_bucket()
    with pytest.raises(StorageError, match="no-such-bucket"):
        ingest(config(), str(root), "s3://no-such-bucket/out")
    with pytest.raises(StorageError, match="no-such-bucket"):
        ingest(config(), "s3://no-such-bucket/source", str(root.parent / "out"))


def test_the_manifest_is_read_back_as_it_was(root, tmp_path):
    manifest = ingest(config(), str(root), str(tmp_path / "out"))
    assert DatasetManifest.model_validate(resolve(tmp_path / "out" / "manifest.json").read_json()) == manifest
