"""What the experiment is: its data, trainings, classifiers and audit, and which step lies in which folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from counterray.audits.cit_lr import CitLrConfig
from counterray.audits.settings import AuditConfig
from counterray.audits.worlds.planted import ImagePoolConfig
from counterray.bundle import open_bundle
from counterray.config import Config, load
from counterray.data.ingest import IngestConfig
from jobs.pipeline import prepare
from jobs.pipeline_config import StageRun
from jobs.reproduction.seeds import Seeds
from jobs.reproduction.training import SCORING_SEED, Training

LOSS_JUDGE = "judge"
"""The judge that the autoencoder's loss looks at."""

SCORING_JUDGES = ("classifier", "demographic", "identity_encoder")
"""Judges that measure gates, by stage."""

GENERATORS = {
    "exact": "the renderer",
    "learned": "mine_ldm",
    "untrained": "mine_ldm, its denoiser untrained",
    "shuffled": "mine_ldm, asked for a level drawn at random",
}
"""Whose counterfactuals are audited, and what they are called."""

DEGRADED = ("untrained", "shuffled")
"""Generators that are fit for nothing, on purpose."""


class Experiment(Config):
    """A pool of classifiers whose dependence on an attribute is known, audited four ways."""

    ingest: IngestConfig
    """The data that generator and judges learn from."""
    judges: dict[str, Training]
    """``judge`` of the loss, and those of `SCORING_JUDGES`; for the latter give patients (``loader.fold``)
    that the generator does not learn from."""
    vae: Training
    """Stage 1 of the generator."""
    perturbation: Training | None = None
    """Stage 2, T_ξ; without, the generator is the baseline CLDM."""
    ldm: Training
    """Stage 3."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """How it generates, see `counterray.models.mine_ldm.generator.GenerationConfig`."""
    pool: ImagePoolConfig = ImagePoolConfig()
    """The classifiers; each seed of the experiment fits them anew, on other studies."""
    individuals: int = Field(default=600, ge=50)
    """Studies that are audited, of patients that nobody has learned from."""
    nulls: int = Field(default=2, ge=1)
    """Null interventions on each study, for a generator with randomness."""
    audit: AuditConfig = AuditConfig()
    """The counterfactual audit."""
    cit_lr: CitLrConfig = CitLrConfig()
    """CIT-LR on the same individuals."""
    components: int = Field(default=16, ge=1)
    """Principal components of T(u) that CIT-LR is given as Z; the paper's latent has more numbers than
    there are individuals here."""
    least_patients: int = Field(default=3, ge=2)
    """Patients that each level needs for the associational tests."""
    seeds: Seeds = (0, 1, 2)
    """Each repeats judges, generator, classifiers and individuals on the same data."""
    parallel: int = Field(default=2, ge=1)
    """Trainings, and measurements, at a time."""

    @model_validator(mode="after")
    def _can_be_run(self) -> Experiment:
        if set(self.judges) != {LOSS_JUDGE, *SCORING_JUDGES}:
            raise ValueError(f"judges must be {', '.join((LOSS_JUDGE, *SCORING_JUDGES))}")
        if self.pool.image_size != self.ingest.image_size:
            raise ValueError(
                f"pool.image_size = {self.pool.image_size} must be ingest.image_size = "
                f"{self.ingest.image_size}: the classifiers see the generator's images"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """An experiment's trainings.

    Attributes:
        stages: Name of each training, its folder, to the training.
        prepared: The same to its settings.
    """

    stages: Mapping[str, StageRun]
    prepared: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class PoolRun:
    """The pool of one seed, ready to be audited.

    Attributes:
        experiment: The experiment.
        seed: The seed.
        generator: Bundle of the generator.
        judges: Stage to the bundle of the judge that measures gates.
    """

    experiment: Experiment
    seed: int
    generator: str
    judges: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Where its file lies."""
        return f"seed-{self.seed}"

    @property
    def pool(self) -> ImagePoolConfig:
        """The classifiers of this seed."""
        return self.experiment.pool.model_copy(update={"seed": self.experiment.pool.seed + self.seed})

    def request(self, kind: Literal["pool"]) -> dict[str, Any]:
        """What decides the measurement."""
        uris = {"generator": self.generator, **self.judges}
        left_out = {"ingest", "judges", "vae", "perturbation", "ldm", "seeds", "parallel"}
        return {
            "bundles": {role: open_bundle(uri).checksum for role, uri in uris.items()},
            "seed": self.seed,
            "settings": self.experiment.model_dump(mode="json", exclude=left_out),
        }


def read_settings(path: Path, overrides: list[str]) -> Experiment:
    """Reads the experiment's YAML.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    return load(Experiment, path, overrides)


def make_plan(path: Path, config: Experiment) -> Plan:
    """The trainings of all seeds, their settings checked.

    Args:
        path: The experiment's file, from which its training files are found.
        config: Its content.

    Raises:
        ConfigError: If a setting of a training is unknown or refused.
    """
    stages: dict[str, StageRun] = {}
    for seed in config.seeds:
        place = f"seed-{seed}"
        for role, training in config.judges.items():
            own = seed if role == LOSS_JUDGE else seed + SCORING_SEED
            stages[f"{place}/{role}"] = training.run(own)
        stages[f"{place}/vae"] = config.vae.run(seed, inputs={"judge": f"{place}/{LOSS_JUDGE}"})
        inputs = {"vae": f"{place}/vae"}
        if config.perturbation is not None:
            inputs["perturbation"] = f"{place}/perturbation"
            stages[inputs["perturbation"]] = config.perturbation.run(seed, inputs={"vae": inputs["vae"]})
        perturbed = {"perturbed": config.perturbation is not None}
        stages[f"{place}/ldm"] = config.ldm.run(seed, inputs=inputs, settings=perturbed)
    return Plan(stages, {name: prepare(path, stage) for name, stage in stages.items()})
