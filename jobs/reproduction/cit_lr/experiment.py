"""What the experiment is: its worlds, its pool, its tests, and how they are calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from counterray.audits.cit_lr import CitLrConfig
from counterray.audits.settings import AuditConfig
from counterray.audits.worlds.equations import WORLDS, WorldConfig, WorldName
from counterray.audits.worlds.pool import STRENGTHS
from counterray.config import Config, load
from jobs.reproduction.seeds import Seeds

METHODS = {
    "cit_lr_shipped": "CIT-LR as shipped",
    "cit_lr_two_sample": "CIT-LR, two-sample",
    "cit_lr_corrected": "CIT-LR corrected",
    "dp_shipped": "DP as shipped",
    "eo_shipped": "EO as shipped",
    "dp_welch": "DP, Welch",
    "orthogonal_p": "orthogonalised δ (p)",
    "orthogonal_effect": "orthogonalised δ (effect)",
    "effect_exact": "flip rate, exact counterfactuals",
    "effect_learned": "flip rate, learned counterfactuals",
}
"""Columns of the tables, and what they are called."""

Kind = Literal["world", "calibration"]

Setting = Literal[
    "exact_abducted",
    "exact_redrawn",
    "learned_abducted",
    "learned_redrawn",
    "learned_without_graph",
    "power",
    "false_equivalence",
    "phantom_exact_redrawn",
    "phantom_learned",
    "phantom_learned_alone",
]
"""What is calibrated: type I error with eight generators, power, and false equivalence at the margin."""

SETTINGS: dict[Setting, str] = {
    "exact_abducted": "exact generator, noise kept: nothing moves at all",
    "exact_redrawn": "exact generator that draws the measurement noise anew",
    "learned_abducted": "learned generator that knows the graph, residuals kept: nothing moves at all",
    "learned_redrawn": "learned generator that knows the graph, residuals drawn anew",
    "learned_without_graph": "learned generator that does not know the graph, against null generators",
    "power": "power at a true mean |effect| of 0.05",
    "false_equivalence": "false equivalence at a true mean |effect| on the margin",
    "phantom_exact_redrawn": "phantom, renderer that draws the noise anew",
    "phantom_learned": "phantom, learned generator, against null generators",
    "phantom_learned_alone": "phantom, learned generator, against its own null interventions",
}


PHANTOM: tuple[Setting, ...] = ("phantom_exact_redrawn", "phantom_learned", "phantom_learned_alone")
"""Settings on the phantom; the others are on tabular worlds."""


class Calibration(Config):
    """How often the audit errs where the truth is known, over freshly drawn worlds."""

    replicates: int = Field(default=400, ge=1)
    """Worlds, each with one classifier, for each setting; a rate of 0.05 has a standard error of 0.011."""
    individuals: int = Field(default=500, ge=100)
    """Individuals who are audited."""
    learning: int = Field(default=400, ge=100)
    """Rows that classifier and generator are fitted on."""
    noise: float = Field(default=0.3, ge=0)
    """σ of the worlds of type I error: a generator that draws noise anew then moves scores visibly. Power and
    equivalence are measured at the worlds' own σ, where classifiers can be made to depend."""
    null_generators: int = Field(default=19, ge=19)
    """Generators with shuffled levels, for the one that does not know the graph."""
    effect: float = Field(default=0.05, gt=0, lt=1)
    """True mean ``|effect|`` for power."""
    permutations: int = Field(default=399, ge=199)
    """Of each replicate's audit; few, since only whether p is below 0.05 counts."""
    resamples: int = Field(default=200, ge=200)
    """Of each replicate's audit; no interval is looked at."""


class PhantomCalibration(Config):
    """The same on the phantom, whose patients are drawn from one rendered pool."""

    pool: int = Field(default=12_000, ge=200)
    """Studies that are rendered; many, since replicates that share patients are no replicates."""
    image_size: int = Field(default=32, ge=32)
    """Edge of the images [px]."""
    individuals: int = Field(default=200, ge=50)
    """Studies that are audited in each replicate."""
    learning: int = Field(default=400, ge=100)
    """Studies that classifier and generator are fitted on in each replicate; of other patients."""
    null_generators: int = Field(default=19, ge=19)
    """Generators with shuffled levels, for the learned one."""
    finding: str = "pleural_effusion"
    """What the classifiers tell."""
    seed: int = Field(default=0, ge=0)
    """Of the pool and of what is drawn from it."""

    @model_validator(mode="after")
    def _has_enough(self) -> PhantomCalibration:
        if self.pool < 2 * (self.learning + self.individuals):
            raise ValueError(
                f"pool = {self.pool} studies are too few to draw {self.learning} + {self.individuals} anew "
                "in each replicate; twice as many or more are needed"
            )
        return self


class Experiment(Config):
    """The published experiment, with what we set beside it."""

    worlds: tuple[WorldName, ...] = WORLDS
    """Which worlds."""
    reading: Literal["corrected", "as_shipped"] = "corrected"
    """Of the worlds' equations."""
    individuals: int = Field(default=1000, ge=200)
    """Individuals of a world."""
    learning: float = Field(default=0.8, gt=0, lt=1)
    """Share of them that classifiers, nuisance networks as shipped and generators are fitted on; the rest is
    audited."""
    strengths: tuple[float, ...] = STRENGTHS
    """How much the pool's classifiers see of what A touches; ten classifiers each."""
    simulated: int = Field(default=10_000, ge=1000)
    """Individuals by which true ECA is simulated."""
    seeds: Seeds = (0, 1, 2)
    """Each draws worlds, individuals and classifiers anew."""
    shipped: CitLrConfig = CitLrConfig.as_shipped()
    """CIT-LR as shipped."""
    corrected: CitLrConfig = CitLrConfig()
    """CIT-LR as meant, and the orthogonalised δ."""
    audit: AuditConfig = AuditConfig()
    """The counterfactual audit."""
    calibration: Calibration = Calibration()
    """How it is calibrated."""
    phantom: PhantomCalibration = PhantomCalibration()
    """How it is calibrated on images."""
    reference: dict[WorldName, dict[str, float]] = Field(default_factory=dict)
    """World to method to the Spearman correlation of an earlier measurement with other draws, beside ours."""
    parallel: int = Field(default=2, ge=1)
    """Measurements at a time."""

    @model_validator(mode="after")
    def _can_be_run(self) -> Experiment:
        if not self.worlds or len(set(self.worlds)) < len(self.worlds):
            raise ValueError(f"worlds {list(self.worlds)} must be one or more different ones")
        if 0 not in self.strengths or not all(0 <= strength <= 1 for strength in self.strengths):
            raise ValueError(f"strengths {list(self.strengths)} must lie in 0 to 1, with 0 among them")
        unknown = sorted({name for row in self.reference.values() for name in row} - set(METHODS))
        if unknown:
            raise ValueError(f"reference names {unknown[0]!r}; methods: {', '.join(METHODS)}")
        return self


@dataclass(frozen=True)
class WorldRun:
    """One world of one seed, ready to be measured."""

    experiment: Experiment
    name: WorldName
    seed: int

    @property
    def folder(self) -> str:
        """Where its file lies."""
        return f"seed-{self.seed}/{self.name}"

    @property
    def config(self) -> WorldConfig:
        """The world."""
        return WorldConfig(name=self.name, reading=self.experiment.reading, seed=self.seed)

    def request(self, kind: Kind) -> dict[str, Any]:
        """What decides the measurement."""
        left_out = {"worlds", "seeds", "calibration", "phantom", "reference", "parallel"}
        return {
            "world": self.config.model_dump(mode="json"),
            "settings": self.experiment.model_dump(mode="json", exclude=left_out),
        }


@dataclass(frozen=True)
class CalibrationRun:
    """One setting of the calibration, ready to be measured."""

    experiment: Experiment
    setting: Setting
    seed: int = 0

    @property
    def folder(self) -> str:
        """Where its file lies."""
        return f"calibration/{self.setting}"

    def request(self, kind: Kind) -> dict[str, Any]:
        """What decides the measurement."""
        include = {"calibration", "audit"} | ({"phantom"} if self.setting in PHANTOM else set())
        return {
            "setting": self.setting,
            "settings": self.experiment.model_dump(mode="json", include=include),
        }


def read_settings(path: Path, overrides: list[str]) -> Experiment:
    """Reads the experiment's YAML.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    return load(Experiment, path, overrides)
