"""A method from data to report in one go: ingest, train its stages as their inputs allow, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from pydantic import Field, model_validator

from counterray import catalog
from counterray.config import Config, ConfigError, load
from counterray.data.ingest import IngestConfig, ingest
from counterray.storage import resolve
from counterray.training.progress import progress_board
from counterray.training.ray_train import train
from jobs.evaluation import EvaluateConfig, evaluate

logger = logging.getLogger(__name__)


class StageRun(Config):
    """One training of the pipeline."""

    config: str
    """Training YAML, relative to the pipeline's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings on top of it, by dotted name."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Role to the name of an earlier training of this pipeline."""


class PipelineConfig(Config):
    """What to ingest, train and score."""

    ingest: IngestConfig
    """The data."""
    stages: dict[str, StageRun]
    """Name of each training; its folder below ``--out``."""
    generator: str
    """Name of the training whose bundle is evaluated."""
    judges: tuple[str, ...] = ()
    """Names of the trainings whose bundles score it."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What to score on."""
    parallel: int = Field(default=2, ge=1)
    """Trainings at a time."""

    @model_validator(mode="after")
    def _names_exist(self) -> PipelineConfig:
        known = list(self.stages)
        for position, (name, stage) in enumerate(self.stages.items()):
            unknown = sorted(set(stage.inputs.values()) - set(known[:position]))
            if unknown:
                raise ValueError(f"stages.{name}.inputs names {unknown[0]!r}, which is no earlier stage")
        for name in (self.generator, *self.judges):
            if name not in self.stages:
                raise ValueError(f"{name!r} is no stage; stages: {', '.join(known)}")
        return self


def run_pipeline(path: Path, config: PipelineConfig, *, root: str | None, out: str) -> Mapping[str, Any]:
    """Runs what is not done yet, and returns ``report``, ``metrics`` and ``seconds``.

    Args:
        path: The pipeline's file, from which its training files are found.
        config: Its content.
        root: Folder of the source's files, where the source needs one.
        out: Folder or ``s3://`` URI of everything that is made.
    """
    started = time.monotonic()
    place = resolve(out).uri
    prepared = {name: prepare(path, stage) for name, stage in config.stages.items()}
    manifest = ingest(config.ingest, root, f"{place}/data")
    studies = sum(int(split["studies"]) for split in manifest.counts.values())
    logger.info("data: %d studies after %.0f s", studies, time.monotonic() - started)
    bundles = _train_all(config, prepared, place)
    logger.info("trained %d stages after %.0f s", len(bundles), time.monotonic() - started)
    result = evaluate(
        config.evaluate,
        model=bundles[config.generator],
        data=f"{place}/data",
        out=f"{place}/report",
        judges=[bundles[name] for name in config.judges],
    )
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def prepare(path: Path, stage: StageRun) -> dict[str, Any]:
    """A training's settings as plain values, checked before anything starts."""
    overrides = [f"{name}={value}" for name, value in stage.settings.items()]
    _, settings = catalog.read_training(path.parent / stage.config, overrides)
    return settings.model_dump(mode="json")


def _train_all(config: PipelineConfig, prepared: Mapping[str, dict[str, Any]], place: str) -> dict[str, str]:
    """Trains every stage once its inputs are there, ``config.parallel`` at a time; name to bundle."""
    bundles: dict[str, str] = {}
    waiting = dict(config.stages)
    running: dict[Any, str] = {}
    with progress_board() as board:
        while waiting or running:
            for name, stage in list(waiting.items()):
                if len(running) < config.parallel and all(role in bundles for role in stage.inputs.values()):
                    inputs = {role: bundles[source] for role, source in stage.inputs.items()}
                    values = {**prepared[name], "inputs": inputs}
                    reference = _train_stage.remote(values, f"{place}/data", f"{place}/{name}", board)
                    running[reference] = name
                    del waiting[name]
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            bundles[running.pop(finished)] = _result(finished)
    return bundles


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _train_stage(values: dict[str, Any], data: str, out: str, board: Any) -> str:
    stage, settings = catalog.make_training(values)
    method = catalog.entry(stage.name).method
    return train(
        stage, settings, method=method, data=data, out=out, resume=True, board=board
    ).bundle.location.uri


def _result(reference: Any) -> str:
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def read_pipeline(path: Path, overrides: list[str]) -> PipelineConfig:
    """Reads a pipeline's YAML.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"There is no pipeline {path.stem!r}. Available: {known}.")
    return load(PipelineConfig, path, overrides)
