"""The jobs as a user runs them: each in a process of its own, on a disk and on an S3 server, also killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterray.bundle import BundleError, open_bundle
from counterray.data.dataset import Dataset
from counterray.storage import resolve
from jobs.evaluation import EvaluateConfig, evaluate
from tests.cluster.commands import command, finish, start
from tests.cluster.runs import fit
from tests.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {
    "backbone.widths": "[8, 16]",
    "backbone.blocks": "[1, 1]",
    "steps": "120",
    "batch_size": "16",
    "checkpoint.every_steps": "40",
    "checkpoint.validation_studies": "64",
    "loader.block_studies": "256",
}


def line_of(job: str, *arguments: str, **settings: str) -> list[str]:
    assignments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return command(job, *arguments, *assignments)


def result(line: list[str]) -> dict[str, Any]:
    output, _ = finish(line)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def refusal(line: list[str]) -> str:
    process = start(line)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (process.returncode, out, err[-3000:])
    assert "Traceback" not in err
    return err.splitlines()[-1]


def train(data: str, out: str, *flags: str) -> list[str]:
    config = "jobs/configs/train/classifier_phantom.yaml"
    return line_of("train", "--config", config, "--data", data, "--out", out, *flags, **SMALL)


def kill_once_saved(line: list[str], out: str) -> None:
    """SIGKILL to the driver once the first checkpoint is whole."""
    process = start(line)
    place, end = resolve(out) / "metrics.jsonl", time.monotonic() + 300
    while not place.exists() or '"step": 60' not in place.read_bytes().decode():
        if (resolve(out) / "ray" / "checkpoint_manager_snapshot.json").exists():
            break
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.nightly
def test_s3_gives_what_a_disk_gives_also_after_the_driver_was_killed(
    tmp_path: Path, make_bucket: Callable[[], str]
) -> None:
    bucket = make_bucket()
    places = {"disk": str(tmp_path), "s3": f"{bucket}/team"}
    phantom = {"source.studies": "600", "image_size": "32", "shard_rows": "300"}
    datasets = {
        name: result(line_of("ingest", "--source", "phantom", "--out", f"{place}/data", **phantom))
        for name, place in places.items()
    }
    assert datasets["disk"]["fingerprint"] == datasets["s3"]["fingerprint"]
    assert datasets["s3"]["dataset"] == f"{bucket}/team/data"

    whole = result(train(datasets["disk"]["dataset"], f"{tmp_path}/run"))
    out = f"{bucket}/team/run"
    line = train(datasets["s3"]["dataset"], out)
    kill_once_saved(line, out)
    assert not (resolve(out) / "bundle" / "manifest.json").exists()
    assert "Add --resume" in refusal(line)
    resumed = result([*line, "--resume"])

    assert resumed["bundle"] == f"{out}/bundle"
    assert resumed["metrics"] == whole["metrics"]
    ours, theirs = open_bundle(resumed["bundle"]).tensors(), open_bundle(whole["bundle"]).tensors()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) == 0

    scored = result(
        line_of(
            "evaluate",
            "--model",
            f"{out}/bundle",
            "--data",
            f"{bucket}/team/data",
            "--out",
            f"{bucket}/team/report",
        )
    )
    assert scored["report"] == f"{bucket}/team/report/report.html"
    assert resolve(scored["report"]).read_bytes().startswith(b"<!DOCTYPE html>")


def test_the_list_of_jobs_and_their_help() -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "jobs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for job in ("ingest", "train", "evaluate", "generate", "audit", "demo"):
        assert job in listing.stdout
        shown = subprocess.run(
            [sys.executable, "-m", "jobs", job, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for option in ("--address", "--set", "--json"):
            assert option in shown.stdout


def test_bad_settings_and_places_are_one_clear_line(tmp_path: Path, make_bucket: Callable[[], str]) -> None:
    assert "Unknown setting 'optimizer.learning_rate'" in refusal(
        [*train(str(tmp_path), f"{tmp_path}/run"), "--set", "optimizer.learning_rate=1"]
    )
    assert "There is no dataset" in refusal(train(str(tmp_path), f"{tmp_path}/run"))
    bucket = make_bucket()
    assert f"{bucket}-gone" in refusal(
        line_of("ingest", "--source", "phantom", "--out", f"{bucket}-gone/data", **{"source.studies": "8"})
    )


def test_a_generator_is_scored_by_judges_apart_from_it_in_numbers_of_its_own(
    ray_cluster: None, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    data = phantom_dataset.location.uri
    tiny: dict[str, Any] = {"stage": "identity_encoder", "steps": 2, "checkpoint": {"every_steps": 2}}
    judges = {
        fold: fit(tmp_path / fold, data, **tiny, seed=seed, loader={"fold": fold}).bundle
        for seed, fold in enumerate(("a", "b"))
    }
    generator = fit(
        tmp_path / "gsvae",
        data,
        stage="gsvae",
        steps=2,
        checkpoint={"every_steps": 2},
        backbone=None,
        network={"widths": [8, 8], "transformer_width": 16, "transformer_layers": 1},
        weights={"pathology": 0.0},
        inputs={"identity": judges["a"].location.uri},
    ).bundle
    config = EvaluateConfig(studies=24, cycles=(1,))
    places = {"model": generator.location.uri, "data": data, "out": str(tmp_path / "report")}
    scored = evaluate(config, **places, judges=[judges["b"].location.uri])
    assert "identity_top1" in scored["metrics"]
    assert "judge.identity_encoder.identity_top1" in scored["metrics"]
    assert (tmp_path / "report" / "report.html").is_file()
    with pytest.raises(BundleError, match="is not apart from the generator's loss 'identity'"):
        evaluate(config, **places, judges=[judges["a"].location.uri])
    with pytest.raises(BundleError, match="One judge of each"):
        evaluate(config, **places, judges=[judges["b"].location.uri] * 2)
