"""The experiment end to end at a tenth of its size: every arm, killed, run again, and not done twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.cluster.commands import command, finish, start

pytestmark = [pytest.mark.cluster, pytest.mark.experiment]

_JUDGE = {"steps": 8, "batch_size": 16, "checkpoint.every_steps": 8, "checkpoint.validation_studies": 32}
TINY = {
    "ingest.source.studies": 600,
    "ingest.image_size": 32,
    "seeds": [0],
    "arms": ["baseline", "full"],
    "scoring.studies": 24,
    "scoring.minimum_positives": 2,
    "rare.studies": 6,
    "rare.timed": 2,
    "rare.printed_time": 1,
    "rare.optimise.iterations": 3,
    "rare.optimise.steps": 2,
    "downstream.synthetic": 4,
    "downstream.network.width": 8,
    "downstream.network.steps": 5,
    "downstream.network.batch_size": 16,
    **{
        f"judges.{role}.settings.{name}": value
        for role in ("pathology", "identity", "classifier", "segmentor")
        for name, value in _JUDGE.items()
    },
    **{f"gsvae.settings.{name}": value for name, value in _JUDGE.items()},
    **{f"pathology_ldm.settings.{name}": value for name, value in _JUDGE.items()},
    "pathology_ldm.settings.sampler": {"steps": 4},
}


def line_of(out: Path) -> list[str]:
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return command("reproduce", "--experiment", "causal_disentanglement", *settings, "--out", str(out))


def test_an_experiment_that_was_killed_goes_on_and_writes_its_tables(tmp_path: Path) -> None:
    first = tmp_path / "seed-0" / "judges" / "pathology" / "bundle" / "manifest.json"
    process, end = start(line_of(tmp_path)), time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    written = first.stat().st_mtime_ns

    output, _ = finish(line_of(tmp_path))
    result = json.loads(output.splitlines()[-1])

    assert first.stat().st_mtime_ns == written
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert [row["arm"] for row in tables["ablation"]] == ["baseline", "full"]
    assert all(row["frechet_distance"]["mean"] > 0 for row in tables["ablation"])
    assert len(tables["rare"]) == len(tables["downstream"]) == 1
    assert tables["rare"][0]["order"][0] == "pneumothorax"
    assert result["bars"] == tables["bars"]
    assert len(tables["bars"]) == 3 + 3 + 3
    page = (tmp_path / "report.html").read_text()
    assert "(d) Downstream use" in page
    assert "http://" not in page
    assert "https://" not in page
    # The full arm draws with the model of the arm before it.
    assert not (tmp_path / "seed-0" / "full" / "pathology_ldm").exists()
    assert (tmp_path / "seed-0" / "refined" / "pathology_ldm" / "bundle" / "manifest.json").exists()


SMALL_WORLDS = {
    "worlds": ["linear", "sin"],
    "seeds": [0],
    "individuals": 200,
    "strengths": [0, 1],
    "simulated": 1000,
    "shipped.nuisance.epochs": 5,
    "corrected.nuisance.epochs": 5,
    "audit.resamples": 200,
    "audit.permutations": 199,
    "calibration.replicates": 2,
    "calibration.individuals": 100,
    "calibration.learning": 100,
    "phantom.pool": 300,
    "phantom.individuals": 50,
    "phantom.learning": 100,
}


def test_the_cit_lr_experiment_that_was_killed_goes_on_and_writes_its_tables(tmp_path: Path) -> None:
    settings = [
        part for name, value in SMALL_WORLDS.items() for part in ("--set", f"{name}={json.dumps(value)}")
    ]
    line = command("reproduce", "--experiment", "cit_lr", *settings, "--out", str(tmp_path))
    first = tmp_path / "seed-0" / "linear" / "world.json"
    process, end = start(line), time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    written = first.stat().st_mtime_ns

    output, _ = finish(line)
    result = json.loads(output.splitlines()[-1])

    assert first.stat().st_mtime_ns == written
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert set(tables["correlations"]) == {"linear", "sin"}
    assert tables["correlations"]["linear"]["effect_exact"]["mean"] > 0.5
    assert tables["by_strength"][0]["eca"] == 1
    assert set(tables["calibration"]) == {path.name for path in (tmp_path / "calibration").iterdir()}
    assert result["bars"] == tables["bars"]
    page = (tmp_path / "report.html").read_text()
    assert "(c) Calibration of the counterfactual audit" in page
    assert "http://" not in page
    assert "https://" not in page
