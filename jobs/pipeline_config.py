"""What a pipeline is asked for: its data, its trainings as a graph, and what is done with their bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from counterray.config import Config, ConfigError, load
from counterray.data.ingest import IngestConfig
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.reports.transform import RefineConfig
from jobs.auditing.request import EXACT, AuditJobConfig
from jobs.evaluation import EvaluateConfig

DATA = "data"
"""Name of the pipeline's main dataset, and its folder."""

_FOLDERS = (DATA, "refined", "report", "audit")
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


class AuditRun(Config):
    """An audit of classifiers that the pipeline trains."""

    classifiers: tuple[str, ...] = Field(min_length=1)
    """Names of the trainings whose bundles are audited."""
    attributes: tuple[str, ...] = Field(min_length=1)
    """Attributes to intervene on."""
    generator: str = EXACT
    """Name of the training whose bundle makes the counterfactuals; ``exact`` on the phantom."""
    judges: tuple[str, ...] = ()
    """Names of the trainings whose bundles measure gates."""
    settings: AuditJobConfig = AuditJobConfig()
    """Studies, tests and gates."""


class PipelineConfig(Config):
    """What to ingest, train, score and audit."""

    ingest: IngestConfig
    """The data."""
    refine: RefineConfig | None = None
    """How reports become prompts; they are left as they are where null."""
    stages: dict[str, StageRun | EncodeRun]
    """Name of each training or encoding; its folder below ``--out``."""
    generator: str | None = None
    """Name of the training whose bundle is evaluated; nothing is where null."""
    judges: tuple[str, ...] = ()
    """Names of the trainings whose bundles score it."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What to score on."""
    audit: AuditRun | None = None
    """Which of the trainings' classifiers are audited, after that."""
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
        for setting, name in self._results():
            if name not in self.stages:
                raise ValueError(f"{setting} = {name!r} is no stage; stages: {', '.join(known)}")
        if self.generator is None and self.audit is None:
            raise ValueError("neither generator nor audit is set; a pipeline ends with one of them or both")
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
        yield from self._results()

    def _results(self) -> Iterator[tuple[str, str]]:
        """Every setting of what is done with the trained bundles, with the stage that it names."""
        if self.generator is not None:
            yield "generator", self.generator
        yield from (("judges", name) for name in self.judges)
        if self.audit is None:
            return
        if self.audit.generator != EXACT:
            yield "audit.generator", self.audit.generator
        yield from (("audit.classifiers", name) for name in self.audit.classifiers)
        yield from (("audit.judges", name) for name in self.audit.judges)


def read_pipeline(path: Path, overrides: list[str]) -> PipelineConfig:
    """Reads a pipeline's YAML.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"There is no pipeline {path.stem!r}. Available: {known}.")
    return load(PipelineConfig, path, overrides)
