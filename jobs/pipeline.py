"""A method from data to report in one go: ingest, train its stages as their inputs allow, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from pydantic import Field, model_validator

from counterray import catalog
from counterray.config import Config, ConfigError, load
from counterray.data.ingest import IngestConfig, ingest
from counterray.evaluation.opening import require_settings
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.reports.transform import RefineConfig
from counterray.storage import resolve
from counterray.training.progress import progress_board
from counterray.training.ray_train import train
from jobs.encoding import encode
from jobs.evaluation import EvaluateConfig, evaluate
from jobs.refinement import refine

logger = logging.getLogger(__name__)

DATA = "data"
"""Name of the pipeline's main dataset, and its folder."""

_FOLDERS = (DATA, "refined", "report")
"""Folders that a pipeline makes itself, beside those of its stages."""


class StageRun(Config):
    """One training of the pipeline."""

    config: str
    """Training YAML, relative to the pipeline's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings on top of it, by dotted name."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Role to the name of an earlier training of this pipeline."""
    data: str = DATA
    """Dataset to train on: the main one, or the name of an ``encode`` of this pipeline."""

    @property
    def needs(self) -> set[str]:
        """Steps of this pipeline that must be done before."""
        return {*self.inputs.values(), *({self.data} - {DATA})}


class EncodeRun(Config):
    """Latents of the pipeline's dataset, computed once for latent diffusion."""

    gsvae: str
    """Name of the training whose gsvae encodes images."""
    text: str
    """Name of the training whose image-text encoder encodes prompts."""
    settings: EncodeConfig = EncodeConfig()
    """What is computed."""

    @property
    def needs(self) -> set[str]:
        """Steps of this pipeline that must be done before."""
        return {self.gsvae, self.text}


class PipelineConfig(Config):
    """What to ingest, train and score."""

    ingest: IngestConfig
    """The data."""
    refine: RefineConfig | None = None
    """How reports become prompts; they are left as they are where null."""
    stages: dict[str, StageRun | EncodeRun]
    """Name of each training or encoding; its folder below ``--out``."""
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
            if name.split("/")[0] in _FOLDERS:
                raise ValueError(
                    f"stages.{name}: the pipeline makes a folder of that name itself. Name the stage "
                    f"otherwise than {', '.join(_FOLDERS)}"
                )
            unknown = sorted(stage.needs - set(known[:position]))
            if unknown:
                raise ValueError(f"stages.{name} names {unknown[0]!r}, which is no earlier stage")
        for name in (self.generator, *self.judges):
            if name not in self.stages:
                raise ValueError(f"{name!r} is no stage; stages: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _bundles_and_datasets_where_they_belong(self) -> PipelineConfig:
        encodings = [name for name, stage in self.stages.items() if isinstance(stage, EncodeRun)]
        trainings = [name for name in self.stages if name not in encodings]
        for setting, name in self._bundles():
            if name in encodings:
                raise ValueError(
                    f"{setting} = {name!r} is an encoding, which makes a dataset; a bundle is needed. Name "
                    f"one of the trainings here: {', '.join(trainings)}"
                )
        for owner, stage in self.stages.items():
            if isinstance(stage, StageRun) and stage.data in trainings:
                raise ValueError(
                    f"stages.{owner}.data = {stage.data!r} is a training, which makes a bundle; a dataset is "
                    f"needed. Leave it out for the pipeline's own data, or name one of the encodings here: "
                    f"{', '.join(encodings) or 'none'}"
                )
        return self

    def _bundles(self) -> Iterator[tuple[str, str]]:
        """Every setting that names a bundle, with the stage that it names."""
        for owner, stage in self.stages.items():
            if isinstance(stage, EncodeRun):
                yield f"stages.{owner}.gsvae", stage.gsvae
                yield f"stages.{owner}.text", stage.text
            else:
                yield from ((f"stages.{owner}.inputs.{role}", name) for role, name in stage.inputs.items())
        yield "generator", self.generator
        yield from (("judges", name) for name in self.judges)


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
    prepared = {
        name: prepare(path, stage) for name, stage in config.stages.items() if isinstance(stage, StageRun)
    }
    generator, _ = catalog.make_training(prepared[config.generator])
    require_settings(generator.name, config.evaluate.generation)
    data = f"{place}/{DATA}"
    manifest = ingest(config.ingest, root, data)
    studies = sum(int(split["studies"]) for split in manifest.counts.values())
    logger.info("data: %d studies after %.0f s", studies, time.monotonic() - started)
    if config.refine is not None:
        refined = refine(config.refine, data=data, out=f"{place}/refined")
        data = refined["dataset"]
        logger.info("reports: %d refined after %.0f s", refined["refined"], time.monotonic() - started)
    bundles = run_steps(config.stages, prepared, place=place, data=data, parallel=config.parallel)
    logger.info("trained %d stages after %.0f s", len(bundles), time.monotonic() - started)
    result = evaluate(
        config.evaluate,
        model=bundles[config.generator],
        data=data,
        out=f"{place}/report",
        judges=[bundles[name] for name in config.judges],
    )
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def prepare(path: Path, stage: StageRun) -> dict[str, Any]:
    """A training's settings as plain values, checked before anything starts."""
    overrides = [f"{name}={value}" for name, value in stage.settings.items()]
    _, settings = catalog.read_training(path.parent / stage.config, overrides)
    return settings.model_dump(mode="json")


def run_steps(
    stages: Mapping[str, StageRun | EncodeRun],
    prepared: Mapping[str, dict[str, Any]],
    *,
    place: str,
    data: str,
    parallel: int,
) -> dict[str, str]:
    """Runs every step once what it needs is there; what is done already is not done again.

    Args:
        stages: Name of each training or encoding, which is its folder below ``place``, to the step.
        prepared: Name of each training to its settings, see `prepare`.
        place: Folder or ``s3://`` URI.
        data: Dataset that stands for `DATA`.
        parallel: Steps at a time.

    Returns:
        Name of each step to its bundle or dataset.
    """
    done: dict[str, str] = {}
    waiting = dict(stages)
    running: dict[Any, str] = {}
    with progress_board() as board:
        while waiting or running:
            for name, stage in list(waiting.items()):
                if len(running) < parallel and stage.needs <= set(done):
                    out = f"{place}/{name}"
                    if isinstance(stage, EncodeRun):
                        reference = _encode.remote(
                            stage.settings, data, done[stage.gsvae], done[stage.text], out
                        )
                    else:
                        inputs = {role: done[source] for role, source in stage.inputs.items()}
                        values = {**prepared[name], "inputs": inputs}
                        reference = _train_stage.remote(values, done.get(stage.data, data), out, board)
                    running[reference] = name
                    del waiting[name]
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            done[running.pop(finished)] = result_of(finished)
    return done


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _encode(config: EncodeConfig, data: str, gsvae: str, text: str, out: str) -> str:
    return str(encode(config, data=data, gsvae=gsvae, text=text, out=out)["dataset"])


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _train_stage(values: dict[str, Any], data: str, out: str, board: Any) -> str:
    stage, settings = catalog.make_training(values)
    method = catalog.entry(stage.name).method
    return train(
        stage, settings, method=method, data=data, out=out, resume=True, board=board
    ).bundle.location.uri


def result_of(reference: Any) -> Any:
    """What a remote call returned; its own error, which is for the user, in place of Ray's."""
    try:
        return ray.get(reference)
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
