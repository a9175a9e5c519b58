"""What a pipeline may look like: which step may be named where, and which folders are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterray.config import ConfigError, validate
from jobs import pipeline as runs
from jobs.pipeline_config import PipelineConfig, read_pipeline
from tests.conftest import ROOT

STAGES: dict[str, dict[str, Any]] = {
    "text": {"config": "text.yaml"},
    "gsvae": {"config": "gsvae.yaml", "inputs": {"pathology": "text"}},
    "latents": {"gsvae": "gsvae", "text": "text"},
    "ldm": {"config": "ldm.yaml", "data": "latents", "inputs": {"gsvae": "gsvae", "text": "text"}},
}


def pipeline(stages: dict[str, Any] | None = None, **settings: Any) -> PipelineConfig:
    values = {"ingest": {"source": "phantom"}, "stages": {**STAGES, **(stages or {})}, "generator": "ldm"}
    return validate(PipelineConfig, {**values, **settings})


def test_trainings_on_encodings_of_trainings_are_a_pipeline():
    assert list(pipeline(judges=["text"]).stages) == list(STAGES)


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        ({"next": {"config": "a.yaml", "inputs": {"gsvae": "latents"}}}, {}, r"stages\.next\.inputs\.gsvae"),
        ({"next": {"gsvae": "latents", "text": "text"}}, {}, r"stages\.next\.gsvae"),
        ({"next": {"gsvae": "gsvae", "text": "latents"}}, {}, r"stages\.next\.text"),
        ({}, {"generator": "latents"}, "generator"),
        ({}, {"judges": ["text", "latents"]}, "judges"),
    ],
)
def test_latents_are_no_bundle(stages, settings, message):
    with pytest.raises(
        ConfigError, match=f"{message} = 'latents' is an encoding.*trainings here: text, gsvae"
    ):
        pipeline(stages, **settings)


def test_a_bundle_is_no_dataset():
    with pytest.raises(
        ConfigError, match=r"stages\.next\.data = 'gsvae' is a training.*encodings here: latents"
    ):
        pipeline({"next": {"config": "a.yaml", "data": "gsvae"}})


@pytest.mark.parametrize("name", ["data", "refined", "report", "audit"])
def test_a_stage_does_not_take_a_folder_that_the_pipeline_makes(name):
    with pytest.raises(
        ConfigError, match=rf"stages\.{name}: .* folder of that name .* data, refined, report, audit"
    ):
        pipeline({name: {"config": "a.yaml"}})


def test_a_stage_s_folder_does_not_lie_in_another_s():
    """What one of them deletes or claims would be the other's."""
    with pytest.raises(ConfigError, match=r"stages\.data/extra: .* folder of that name"):
        pipeline({"data/extra": {"config": "a.yaml"}})


def audited(**settings: Any) -> dict[str, Any]:
    return {"audit": {"classifiers": ["text"], "attributes": ["sex"], **settings}}


def test_a_pipeline_may_end_with_an_audit_alone():
    config = pipeline(generator=None, **audited())
    assert config.audit is not None
    assert config.audit.generator == "exact"
    assert pipeline(**audited(generator="ldm", judges=["text"])).audit.generator == "ldm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (audited(classifiers=["other"]), r"audit\.classifiers = 'other' is no stage"),
        (audited(generator="other"), r"audit\.generator = 'other' is no stage"),
        (audited(judges=["latents"]), r"audit\.judges = 'latents' is an encoding"),
        (audited(attributes=[]), "audit.attributes"),
        ({"generator": None}, "neither generator nor audit is set"),
    ],
)
def test_an_audit_names_trainings(settings, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(**settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.generation={prompt: labels}", "Unknown setting 'prompt'"),
        ("evaluate.generation={sampler: {steps: 30}}", "steps = 30 must divide timesteps = 1000"),
        ("evaluate.generation={abduction: {nose: fresh}}", r"Unknown setting 'abduction\.nose'"),
        ("stages.classifier.settings.stepps=3", "Unknown setting 'stepps'"),
    ],
)
def test_what_the_end_would_refuse_is_refused_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setattr(runs, "ingest", lambda *_: pytest.fail("the data were read"))
    path = ROOT / "jobs" / "configs" / "demo" / "phantom.yaml"
    with pytest.raises(ConfigError, match=message):
        runs.run_pipeline(path, read_pipeline(path, [override]), root=None, out=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_trainings_run_side_by_side_while_they_leave_a_cpu_that_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = {
        name: {"resources": {"workers": workers, "cpus_per_worker": cpus}}
        for name, workers, cpus in (("small", 1, 0.5), ("other", 1, 0.5), ("wide", 2, 0.5), ("whole", 1, 1.0))
    }

    def fits(name: str, *running: str, cpus: float = 2.0, parallel: int = 4) -> bool:
        monkeypatch.setattr(runs, "most_cpus", lambda: cpus)
        return runs._fits(name, running, prepared, parallel)

    assert fits("other", "small")
    assert fits("latents", "wide")  # an encoding's tasks end by themselves
    assert not fits("small", "wide")
    assert not fits("wide", "small")
    assert not fits("other", "whole")
    assert fits("wide", "small", cpus=2.5)
    assert not fits("other", "small", parallel=1)
    assert fits("wide", cpus=1.0)  # and is refused with the reason, when it trains
