"""Every shipped YAML is valid for its job, and says at its head what it claims."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterray import catalog
from counterray.config import ConfigError, load
from counterray.data.ingest import IngestConfig
from jobs.pipeline import prepare
from jobs.pipeline_config import StageRun, read_pipeline
from jobs.reproduction.job import read_experiment
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))

LOADERS: dict[str, Callable[[Path], Any]] = {
    "ingest": lambda path: load(IngestConfig, path),
    "train": lambda path: catalog.read_training(str(path), ()),
    "demo": lambda path: read_pipeline(path, []),
    "reproduce": lambda path: read_experiment(path, []),
}
"""Job to what reads its files; a new job with files is added here."""


def job_of(path: Path) -> str:
    return path.relative_to(ROOT / "jobs" / "configs").parts[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_shipped_file_is_valid(path):
    LOADERS[job_of(path)](path)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_misspelt_setting_in_a_shipped_file_is_refused(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(f"{path.read_text(encoding='utf-8')}\nbatchsize_or_so: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Unknown setting 'batchsize_or_so'"):
        LOADERS[job_of(path)](copy)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_header_gives_command_hardware_duration_and_score(path):
    text = path.read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True)[:20] if line.startswith("#"))
    by_name = {"demo": f"--data {path.stem}", "reproduce": f"--experiment {path.stem}"}
    named = by_name.get(job_of(path), f"--config {name_of(path)}")
    assert f"python -m jobs {job_of(path)} {named}" in header
    if job_of(path) == "ingest":
        return  # its duration is the data's: most sources are under agreements of use
    assert re.search(r"\b(cores?|CPUs?|GPUs?)\b", header), "no hardware"
    assert re.search(r"\d ?(s|seconds?|min|minutes?|h|hours?)\b", header), "no duration"
    if job_of(path) == "train":
        assert re.search(r"(?i)\bexpect", header), "no expected score"


def test_there_are_files_for_each_job_that_takes_some():
    assert {job_of(path) for path in CONFIGS} == set(LOADERS)


@pytest.mark.parametrize("path", [p for p in CONFIGS if job_of(p) == "demo"], ids=name_of)
def test_a_pipeline_s_trainings_have_valid_settings(path):
    trainings = [s for s in read_pipeline(path, []).stages.values() if isinstance(s, StageRun)]
    assert trainings
    for stage in trainings:
        assert prepare(path, stage)["stage"]
