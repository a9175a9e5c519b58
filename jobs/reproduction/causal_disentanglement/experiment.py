"""What an experiment is: its data, trainings, arms and seeds, and which step lies in which folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from counterray import catalog
from counterray.config import Config, ConfigError, load, validate
from counterray.data.ingest import IngestConfig
from counterray.data.labels import FINDINGS
from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig
from counterray.diffusion.schedule import ScheduleConfig, sampling_scheduler
from counterray.evaluation.downstream import DownstreamConfig
from counterray.evaluation.opening import require_settings
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.reports.transform import RefineConfig
from jobs.pipeline import prepare
from jobs.pipeline_config import EncodeRun, StageRun
from jobs.reproduction.seeds import Seeds
from jobs.reproduction.training import SCORING_SEED, Training

LOSS_JUDGES = ("pathology", "identity")
"""Judges that the losses look at."""

SCORING_JUDGES = ("classifier", "segmentor")
"""Judges that score."""


class Arm(Config):
    """One row of the ablation: what it changes of the shared trainings. Equal steps are run once."""

    label: str
    """What the tables call it."""
    gsvae: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 1, by dotted name."""
    encode: dict[str, Any] = Field(default_factory=dict)
    """Settings of the encoding, of `EncodeConfig`."""
    pathology_ldm: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 2, by dotted name."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """How its model generates, of `GenerationConfig`; stage 2's own settings where empty."""
    optimise: bool = False
    """Whether the initial noise is optimised where a rare finding is asked for."""
    published: dict[Literal["frechet_distance", "auroc"], float] = Field(default_factory=dict)
    """The paper's numbers of this row."""


class Scoring(Config):
    """What every arm is scored on."""

    studies: int = Field(default=400, ge=2)
    """Test studies at most, each edited to show what another one's prompt says."""
    training_studies: int = Field(default=4000, ge=2)
    """Training studies at most: for the nearest training image and for noise optimisation's references."""
    minimum_positives: int = Field(default=10, ge=2)
    """Positive studies that a finding needs to count in macro averages."""


class RareEdits(Config):
    """How rare findings are asked for, with and without noise optimisation."""

    optimise: NoiseOptimisationConfig = NoiseOptimisationConfig()
    """How noise is optimised."""
    references: int = Field(default=10, ge=2)
    """m: reference images of the training split (the paper's 10)."""
    studies: int = Field(default=64, ge=2)
    """Test studies without the finding that are edited to show it."""
    timed: int = Field(default=8, ge=1)
    """Of these, how many Algorithm 2 as printed is timed on, with the rarest finding."""
    printed_time: float = Field(default=10, gt=0)
    """Algorithm 2 as printed is given at least this many times our own time to be as near to its targets."""


class Utility(Config):
    """Table 5: a diagnostic network trained without and with synthetic images of the rare findings."""

    findings: tuple[str, ...] = ("cardiomegaly", "pleural_effusion", "consolidation", "edema", "pneumothorax")
    """What the network learns; those that the data lack are left out."""
    synthetic: int = Field(default=60, ge=1)
    """Synthetic images of each rare finding."""
    network: DownstreamConfig = DownstreamConfig()
    """The network and its training."""


class Experiment(Config):
    """A paper's experiment."""

    ingest: IngestConfig
    """The data."""
    refine: RefineConfig = RefineConfig()
    """How reports become prompts."""
    judges: dict[str, Training]
    """Judges of the losses (``pathology``, ``identity``) and of the scores (``classifier``, ``segmentor``),
    each trained once for a seed."""
    gsvae: Training
    """Stage 1 with all that the method has."""
    pathology_ldm: Training
    """Stage 2."""
    ablation: dict[str, Arm]
    """Name of each arm, also its folder, to what it changes; in the order of the paper's table."""
    full: str
    """The arm that has it all: the one whose counterfactuals are looked at in depth."""
    arms: tuple[str, ...] = ()
    """Arms to run; all where empty."""
    seeds: Seeds = (0, 1, 2)
    """Each repeats the judges, all trainings and all draws on the same data."""
    scoring: Scoring = Scoring()
    """What every arm is scored on."""
    rare: RareEdits = RareEdits()
    """How rare findings are asked for."""
    downstream: Utility = Utility()
    """Table 5."""
    parallel: int = Field(default=2, ge=1)
    """Trainings, and scorings, at a time."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Arms to run, in the order of the table."""
        return tuple(name for name in self.ablation if not self.arms or name in self.arms)

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        known = ", ".join(self.ablation)
        for name in (self.full, *self.arms):
            if name not in self.ablation:
                raise ValueError(f"{name!r} is no arm; arms: {known}")
        if set(self.judges) != {*LOSS_JUDGES, *SCORING_JUDGES}:
            raise ValueError(f"judges must be {', '.join((*LOSS_JUDGES, *SCORING_JUDGES))}")
        return self


@dataclass(frozen=True)
class Plan:
    """An experiment's steps.

    Attributes:
        stages: Name of each step, its folder, to the step.
        prepared: Name of each training to its settings.
        models: Seed and arm to the name of its stage 2.
    """

    stages: Mapping[str, StageRun | EncodeRun]
    prepared: Mapping[str, dict[str, Any]]
    models: Mapping[tuple[int, str], str]


def read_settings(path: Path, overrides: list[str]) -> Experiment:
    """Reads the experiment's YAML.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    return load(Experiment, path, overrides)


def make_plan(path: Path, config: Experiment) -> Plan:
    """The steps of the chosen arms and seeds, all settings checked.

    Args:
        path: The experiment's file, from which its training files are found.
        config: Its content.

    Raises:
        ConfigError: If a setting of a training or of a measurement is unknown or refused.
    """
    _require_measurable(config)
    stages: dict[str, StageRun | EncodeRun] = {}
    prepared: dict[str, dict[str, Any]] = {}
    models: dict[tuple[int, str], str] = {}
    owners = {arm: _owners(config, arm) for arm in config.chosen}
    for seed in config.seeds:
        judges = {role: f"seed-{seed}/judges/{role}" for role in config.judges}
        for role, training in config.judges.items():
            own = seed + SCORING_SEED if role in SCORING_JUDGES else seed
            stages[judges[role]] = training.run(own)
            prepared[judges[role]] = prepare(path, training.run(own))
        for name, (first, second, third) in owners.items():
            arm = config.ablation[name]
            gsvae, latents = f"seed-{seed}/{first}/gsvae", f"seed-{seed}/{second}/latents"
            model = f"seed-{seed}/{third}/pathology_ldm"
            prepared[gsvae] = prepare(path, config.gsvae.run(seed, settings=arm.gsvae))
            stage, _ = catalog.make_training(prepared[gsvae])
            losses = {role: judges[role] for role in LOSS_JUDGES if role in stage.inputs}
            stages[gsvae] = config.gsvae.run(seed, settings=arm.gsvae, inputs=losses)
            stages[latents] = EncodeRun(
                gsvae=gsvae, text=judges["pathology"], settings=validate(EncodeConfig, arm.encode)
            )
            stages[model] = config.pathology_ldm.run(
                seed,
                settings=arm.pathology_ldm,
                inputs={"gsvae": gsvae, "text": judges["pathology"]},
                data=latents,
            )
            prepared[model] = prepare(path, config.pathology_ldm.run(seed, settings=arm.pathology_ldm))
            _require_drawable(config, name, prepared[model])
            models[seed, name] = model
    return Plan(stages, prepared, models)


def _require_measurable(config: Experiment) -> None:
    """Finds before the trainings what the measurements after them would refuse; see `_require_drawable`."""
    unknown = sorted(set(config.downstream.findings) - set(FINDINGS))
    if unknown:
        raise ConfigError(
            f"downstream.findings names {unknown[0]!r}, which is none of: {', '.join(FINDINGS)}."
        )


def _require_drawable(config: Experiment, arm: str, trained: Mapping[str, Any]) -> None:
    """Finds before the trainings how an arm's model, of settings ``trained``, could not be drawn from."""
    stage, _ = catalog.make_training(trained)
    try:
        require_settings(stage, config.ablation[arm].generation)
    except ConfigError as error:
        raise ConfigError(f"ablation.{arm}.generation: {error}") from error
    try:
        schedule = ScheduleConfig.model_validate(trained["schedule"])
        sampling_scheduler(schedule, "ddim", config.rare.optimise.steps)
    except ValueError as error:
        raise ConfigError(f"rare.optimise.steps: {error}") from error


def _owners(config: Experiment, arm: str) -> tuple[str, str, str]:
    """Arms in whose folders the three steps of ``arm`` lie: the first ones with the same settings.

    All arms of the ablation count, also those not chosen, so that a choice moves no folder.
    """

    def first(fields: tuple[str, ...]) -> str:
        return next(name for name in config.ablation if _key(name, fields) == _key(arm, fields))

    def _key(name: str, fields: tuple[str, ...]) -> str:
        return json.dumps([getattr(config.ablation[name], field) for field in fields], sort_keys=True)

    return first(("gsvae",)), first(("gsvae", "encode")), first(("gsvae", "encode", "pathology_ldm"))
