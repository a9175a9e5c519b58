"""What an ``audit`` is asked for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from counterray.audits.dose_scores import check_doses
from counterray.audits.settings import AuditConfig
from counterray.config import Config
from counterray.data.study import ATTRIBUTES
from jobs.generation.request import WorkConfig

EXACT = "exact"
"""Generator of an audit on phantom data: the phantom's own causal model and renderer."""


class CausesConfig(Config):
    """The causal graph as the user states it; the report says which paths there are, and tests none."""

    parents: dict[str, tuple[str, ...]]
    """Variable to its direct causes; what classifiers see is ``image``."""
    legitimate: dict[str, str] = Field(default_factory=dict)
    """Variable through which attributes may legitimately act, to the reason."""


class AuditJobConfig(WorkConfig):
    """On which studies to audit, and how."""

    audit: AuditConfig = AuditConfig()
    """Margins, tests and gates."""
    split: str = "test"
    """Split whose studies are audited."""
    fold: Literal["all", "a", "b"] = "all"
    """Patients to audit: all of the split, or one of two halves by a hash of the patient; the half that the
    classifiers did not train on, where the split is ``train``."""
    studies: int | None = Field(default=None, ge=1)
    """Studies at most, in stored order; all of the split by default."""
    validation_studies: int | None = Field(default=2000, ge=1)
    """Studies of the validation split at most by which thresholds are chosen, where they are."""
    levels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Attribute to the levels to compare; studies at others are left out. By default all of the data's that
    have ``audit.minimum_patients``; one that is named here and has fewer refuses the attribute."""
    doses: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Continuous attribute to the doses to compare, two or more, ascending, in its unit, such as
    ``{age: [40, 60, 80]}`` [years]; they have to lie within what the audited studies have."""
    findings: tuple[str, ...] = ()
    """Findings to audit, also ones that the data do not label; by default all that a classifier and the data
    both name."""
    null_interventions: int = Field(default=3, ge=1)
    """Null interventions on each study, with a seed each; one where the generator's do not depend on it."""
    effect: Literal["direct", "total"] = "direct"
    """``direct``: findings and other attributes are held. ``total``: they follow the attribute by the causal
    model, which only the generator ``exact`` knows."""
    causes: CausesConfig | None = None
    """The causal graph as stated."""
    generator: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator itself, where its stage has some, such as ``{sampler: {steps: 20}}``."""
    seed: int = Field(default=0, ge=0)
    """With the image it fixes the noise of every counterfactual."""
    batch_size: int = Field(default=32, ge=1)
    """Images that the generator makes at a time."""
    chunk_studies: int = Field(default=32, ge=1)
    """Studies of a chunk at most: the unit of parallel work and of resuming."""
    bank_studies: int = Field(default=2048, ge=1)
    """Training studies that a generator may take pathologies from, where it works so."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that images may be sent to, with their port where it is not the usual one."""
    training_patients: Literal["refuse", "warn"] = "refuse"
    """What becomes of a classifier that trained on patients of this audit."""
    export: bool = False
    """Write all images as PNG files, with a table to fill in, for a classifier that predicts elsewhere."""

    @field_validator("doses")
    @classmethod
    def _can_be_followed(cls, doses: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        continuous = [name for name, kind in ATTRIBUTES.items() if kind == "continuous"]
        for attribute, chosen in doses.items():
            if attribute not in continuous:
                raise ValueError(
                    f"doses.{attribute}: doses are for continuous attributes ({', '.join(continuous)}); what "
                    f"is compared of others, levels.{attribute} says"
                )
            try:
                check_doses(attribute, chosen)
            except ValueError as error:
                raise ValueError(str(error).rstrip(".")) from error
        return doses
