"""What decides a counterfactual audit: margins, levels of error, tests, and the limits of its gates."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from counterray.audits.errors import MINIMUM_PATIENTS
from counterray.config import Config
from counterray.evaluation.intervals import Floats


class MarginConfig(Config):
    """Below which effects a classifier counts as invariant; to be chosen before the audit is run.

    There is no margin in the literature that fits every finding. The defaults say: one decision in twenty,
    or a probability that moves by 0.05, is tolerated. A screening programme should ask for less.
    """

    mean_effect: float = Field(default=0.05, gt=0, le=1)
    """Largest tolerated ``|mean effect|`` [probability]."""
    absolute_effect: float = Field(default=0.05, gt=0, le=1)
    """Largest tolerated mean of ``|effect|`` [probability]. It sees what cancels in the mean: one half moved
    up, the other half down. To show that it is kept the generator's own noise counts, too."""
    flip_rate: float = Field(default=0.05, gt=0, le=1)
    """Largest tolerated share of decisions that change [0 to 1]; those that noise changes count as well."""

    def size(self, *, mean: Any, absolute: Any, flip_rate: Any) -> Floats:
        """The largest of three effects, each in units of its margin: below 1 all are tolerated.

        Args:
            mean: Mean effect, of any shape.
            absolute: Mean of its absolute value.
            flip_rate: Share of decisions that change.
        """
        shares = (
            np.abs(mean) / self.mean_effect,
            np.asarray(absolute) / self.absolute_effect,
            np.asarray(flip_rate) / self.flip_rate,
        )
        return np.asarray(np.max(np.stack(np.broadcast_arrays(*shares)), axis=0))


class GateConfig(Config):
    """What a generator has to reach before any verdict."""

    effectiveness: float = Field(default=0.8, ge=0, le=1)
    """Least share of counterfactuals in which an independent judge reads the level that was asked for."""
    composition: float = Field(default=0.05, ge=0)
    """Largest mean absolute change of the grey value by a null intervention [share of the grey range]."""
    off_target: float = Field(default=0.05, ge=0)
    """Largest mean absolute change of any finding or attribute that should stay [probability]. Larger than
    the margins it lets pass what then looks like the classifier's doing."""
    identity: float = Field(default=0.8, ge=-1, le=1)
    """Least cosine similarity of an individual's identity features before and after."""
    judge_auroc: float = Field(default=0.8, ge=0, le=1)
    """Least AUROC of the attribute's judge on real images: a weak judge opens no gate."""
    waived: dict[str, str] = Field(default_factory=dict)
    """Name of each gate that need not be measured, to the reason, such as an exact renderer."""


class AuditConfig(Config):
    """How counterfactual effects are tested."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Rate of false "depends" over all tests of one attribute together (classifiers × findings × pairs of
    levels), and of false "invariant" for each claim. Attributes are not corrected for each other: where
    several are audited, ask for ``alpha`` divided by their number to bound the rate over all of them."""
    margins: MarginConfig = MarginConfig()
    """Effects that are tolerated."""
    gates: GateConfig = GateConfig()
    """What the generator has to reach."""
    test: Literal["permutation", "bootstrap", "delta"] = "permutation"
    """Which p-value decides "depends": roles permuted within patients, patients resampled, or the t-test of
    the mean square effect against that of null interventions."""
    correction: Literal["holm", "benjamini_yekutieli", "none"] = "holm"
    """How p-values are corrected over the classifiers, findings and pairs of levels of one attribute."""
    resamples: int = Field(default=1000, ge=200)
    """Bootstrap resamples of patients."""
    permutations: int = Field(default=1999, ge=199)
    """Permutations; the smallest p-value is 1 / (permutations + 1)."""
    power: float = Field(default=0.9, gt=0.5, lt=1)
    """Power for which detectable effects and needed patients are stated."""
    minimum_patients: int = Field(default=MINIMUM_PATIENTS, ge=2)
    """Patients that each observed level needs."""
    seed: int = Field(default=0, ge=0)
    """Of resamples and permutations."""
