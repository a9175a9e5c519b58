"""``generate`` on a real Ray: killed, resumed, refused, on a disk and on an S3 server."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from counterray.config import validate
from counterray.data.dataset import Dataset
from counterray.models.generator import EditError
from counterray.models.gsvae.stages import GSVAEConfig, GSVAEStage
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.storage import StorageError, resolve
from jobs.generation.job import generate
from jobs.generation.request import GenerateConfig, GenerationError
from tests.cluster.bundles import bundle_of
from tests.cluster.commands import command, finish, start
from tests.small_gsvae import NETWORK
from tests.small_pathology_ldm import ldm_bundle, parent_bundles

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

ONE = {"resources": {"workers": 1}}


@pytest.fixture(scope="module")
def model(phantom_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = {"network": NETWORK, "weights": {"identity": 0, "pathology": 0}}
    stage = GSVAEStage(GSVAEConfig.model_validate(settings))
    return bundle_of(stage, tmp_path_factory.mktemp("gsvae") / "bundle", phantom_dataset).location.uri


def config(**settings: Any) -> GenerateConfig:
    return validate(GenerateConfig, {**ONE, **settings})


def rows(out: Path | str, name: str = "provenance.parquet") -> list[dict[str, Any]]:
    place = resolve(out) / name
    return pq.read_table(place.path, filesystem=place.filesystem).to_pylist()


def contents(out: Path) -> dict[str, bytes]:
    """Every image file by its path; also those that no provenance knows."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in (".png", ".dcm")
    }


def line_of(model: str, data: str, out: str, *settings: str) -> list[str]:
    places = ("--model", model, "--data", data, "--out", out, "--from", "shuffled")
    return command("generate", *places, *(part for text in settings for part in ("--set", text)))


def test_killed_half_way_and_run_again_gives_the_same_files_each_once(
    phantom_dataset: Dataset, model: str, tmp_path: Path
) -> None:
    """SIGKILL to the driver; the job is run again as it was, and against one that was left alone."""
    data, out = phantom_dataset.location.uri, tmp_path / "killed"
    settings = {"split": "train", "donor": "shuffled", "chunk_images": 4}
    line = line_of(model, data, str(out), "split=train", "chunk_images=4")
    process, end = start(line), time.monotonic() + 120
    while len(list((out / "images").glob("0*/provenance.parquet"))) < 10:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(list((out / "images").glob("0*/provenance.parquet")))
    assert not (out / "provenance.parquet").exists()
    (out / "images" / f".00099.{'0' * 32}.partial").mkdir()
    written = contents(out)

    output, errors = finish(line)
    assert f"{done} of" in errors or f"{done + 1} of" in errors, "what was there was kept"
    result = json.loads(output.splitlines()[-1])
    assert result["images"] == phantom_dataset.rows("train")
    assert result["skipped"] == {}

    whole = generate(config(**settings), model=model, data=data, out=str(tmp_path / "whole"))
    assert whole["images"] == result["images"]
    assert contents(out) == contents(tmp_path / "whole")
    assert written.items() <= contents(out).items()
    made = rows(out)
    assert len({(row["image_id"], row["sample"]) for row in made}) == len(made) == result["images"]
    assert {row["file"] for row in made} == set(contents(out))
    assert not list((out / "images").glob(".*"))
    sheets = [folder / "contact_sheet.html" for folder in (out, tmp_path / "whole")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_several_samples_that_would_be_one_image_are_refused(
    phantom_dataset: Dataset, model: str, tmp_path: Path
) -> None:
    places = {"model": model, "data": phantom_dataset.location.uri, "out": str(tmp_path / "out")}
    with pytest.raises(GenerationError, match=r"samples=2.*all the same.*abduction\.noise=fresh"):
        generate(config(do={"finding.edema": 1}, samples=2), **places)
    assert generate(config(do={"finding.edema": 1}, studies=2), **places)["images"] > 0


def test_provenance_says_what_each_file_is_and_a_damaged_one_is_made_again(
    phantom_dataset: Dataset, model: str, tmp_path: Path
) -> None:
    places = {"model": model, "data": phantom_dataset.location.uri, "out": str(tmp_path)}
    asked = config(donor="shuffled", studies=20, chunk_images=8, format="dicom")
    first = generate(asked, **places)
    files = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    assert len(files) == first["images"] == 20
    for row in rows(tmp_path):
        assert row["donor_image_id"] != row["image_id"]
        assert row["data_fingerprint"] == phantom_dataset.manifest.fingerprint
        assert hashlib.sha256(files[row["file"]]).hexdigest() == row["sha256"]
        assert json.loads(row["edit"]) == {"donor": "shuffled"}
        read = pydicom.dcmread(tmp_path / row["file"])
        assert row["bundle"] in read.DerivationDescription
        assert (read.pixel_array.shape, read.BitsStored) == ((32, 32), 12)
        assert row["image_id"].encode() not in files[row["file"]]

    broken = tmp_path / rows(tmp_path)[0]["file"]
    broken.write_bytes(b"short")
    assert generate(asked, **places)["images"] == 20
    assert contents(tmp_path) == files
    untouched = {path for path, time_ns in times.items() if path.stat().st_mtime_ns == time_ns}
    assert len(untouched) == 20 - len(list(broken.parent.glob("*.dcm")))
    with pytest.raises(GenerationError, match=r"config\.seed was 0 and is 7"):
        generate(config(donor="shuffled", studies=20, chunk_images=8, format="dicom", seed=7), **places)


def test_images_from_text_alone_do_not_depend_on_the_chunks(phantom_dataset: Dataset, tmp_path: Path) -> None:
    ldm = ldm_bundle(tmp_path / "ldm", parent_bundles(tmp_path)).location.uri
    places = {"model": ldm, "data": phantom_dataset.location.uri}
    asked = {"prompt": "Severe cardiomegaly.", "drawn": 6, "split": "train", "samples": 2}
    asked |= {"generator": {"sampler": {"steps": 2}}}
    grey = []
    for size in (5, 64):
        out = tmp_path / str(size)
        made = generate(config(**asked, chunk_images=size), **places, out=str(out))
        assert made["images"] == 12
        grey.append([np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in contents(out).values()])
    assert max(np.abs(ours - theirs).max() for ours, theirs in zip(*grey, strict=True)) <= 1
    studies = {row["image_id"] for row in rows(tmp_path / "5")}
    assert len(studies) == 6
    assert (grey[0][0] != grey[0][1]).any(), "two samples of one study differ"


def test_what_cannot_be_edited_is_listed_and_the_rest_is_made(
    phantom_dataset: Dataset, model: str, tmp_path: Path
) -> None:
    """With a bank of few studies most combinations of findings have no match."""
    asked = config(do={"finding.cardiomegaly": 1}, bank_studies=60, chunk_images=16)
    result = generate(asked, model=model, data=phantom_dataset.location.uri, out=str(tmp_path))
    made, skipped = rows(tmp_path), rows(tmp_path, "skipped.parquet")
    assert result["images"] == len(made) > 0
    counted = Counter(row["reason"] for row in skipped)
    assert result["skipped"] == counted
    assert counted.keys() == {"no_match", "unchanged"}
    assert len(made) + len(skipped) == phantom_dataset.rows("test")
    assert not {row["image_id"] for row in made} & {row["image_id"] for row in skipped}
    said = {"no_match": "shows exactly", "unchanged": "shows already"}
    assert all(row["file"] is None and said[row["reason"]] in row["detail"] for row in skipped)


def test_requests_that_nothing_can_meet_leave_the_folder_free(
    phantom_dataset: Dataset, model: str, tmp_path: Path
) -> None:
    places = {"model": model, "data": phantom_dataset.location.uri, "out": str(tmp_path / "out")}
    with pytest.raises(EditError, match=r"finding\.edemma: no such finding\. There are: .*edema"):
        generate(config(do={"finding.edemma": 1}), **places)
    assert not (tmp_path / "out").exists()
    with pytest.raises(EditError, match="not by words"):
        generate(config(prompt="mild edema", studies=4), **places)
    judge = bundle_of(ClassifierStage(ClassifierConfig()), tmp_path / "judge", phantom_dataset)
    with pytest.raises(GenerationError, match="'classifier', which edits no images"):
        generate(config(donor="shuffled", studies=4), **{**places, "model": judge.location.uri})
    assert resolve(tmp_path / "out").files() == []


def test_images_go_to_s3_and_a_dead_bucket_is_named(
    phantom_dataset: Dataset, model: str, make_bucket: Callable[[], str]
) -> None:
    bucket, data = make_bucket(), phantom_dataset.location.uri
    settings = ("studies=12", "chunk_images=5", "resources.workers=1")
    output, _ = finish(line_of(model, data, f"{bucket}/made", *settings))
    there = json.loads(output.splitlines()[-1])
    assert there["contact_sheet"] == f"{bucket}/made/contact_sheet.html"
    made = rows(f"{bucket}/made")
    assert len(made) == there["images"] == 12
    for row in made:
        place = resolve(f"{bucket}/made/{row['file']}")
        assert place.sha256() == row["sha256"]
        with Image.open(io.BytesIO(place.read_bytes())) as picture:
            assert picture.text["Source"] == f"bundle {row['bundle']}"
            assert picture.size == (32, 32)
    with pytest.raises(StorageError, match=f"{bucket}-gone"):
        generate(config(donor="shuffled"), model=model, data=data, out=f"{bucket}-gone/made")
