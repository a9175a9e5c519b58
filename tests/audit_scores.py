"""Scores for tests of audits: small ones to compute by hand, and random ones of any shape."""

from __future__ import annotations

import numpy as np

from counterray.audits.scores import CounterfactualScores, Target
from counterray.audits.settings import AuditConfig

WAIVED = {
    name: "a test" for name in ("effectiveness", "composition", "off_target", "identity", "judge_auroc")
}


def config(**settings):
    """An audit without gates."""
    return AuditConfig.model_validate({"gates": {"waived": WAIVED}, "resamples": 200, **settings})


def scores_of(intervened, *, own, labels=None, patients=None, placebo=None, observed=None, **more):
    """`CounterfactualScores` from ``intervened [T, N, K]``; the generator repeats itself exactly."""
    intervened = np.asarray(intervened, dtype=np.float64)
    count, size, levels = intervened.shape
    own = np.asarray(own)
    at_own = np.take_along_axis(intervened, own[None, :, None], axis=2)
    return CounterfactualScores(
        attribute=more.pop("attribute", "sex"),
        levels=more.pop("levels", [f"level {k}" for k in range(levels)]),
        targets=more.pop("targets", [Target(classifier=f"c{t}", finding="edema") for t in range(count)]),
        observed=at_own[..., 0] if observed is None else np.asarray(observed, dtype=np.float64),
        intervened=intervened,
        placebo=at_own if placebo is None else np.asarray(placebo, dtype=np.float64),
        own=own,
        labels=np.zeros((count, size)) if labels is None else np.asarray(labels, dtype=np.float64),
        patients=[f"p{row:04d}" for row in range(size)] if patients is None else patients,
        **more,
    )


def noisy_scores(*, targets=1, size=200, levels=2, shift=0.0, noise=0.05, repeats=1, images=1, seed=0):
    """Scores under a generator that adds noise at every generation, and a shift of each level's own.

    ``images`` of each patient share the patient's base score and own level, not the generator's noise.
    """
    random = np.random.default_rng(seed)
    people = size // images
    of_patient = np.repeat(np.arange(people), images)
    base = random.uniform(0.3, 0.7, (targets, people))[:, of_patient]
    own = random.integers(0, levels, people)[of_patient]

    def generated(count):
        return base[..., None] + random.normal(0, noise, (targets, len(of_patient), count))

    intervened = generated(levels) + shift * np.arange(levels)
    at_own_shift = (shift * own)[None, :, None]
    return scores_of(
        np.clip(intervened, 0, 1),
        own=own,
        placebo=np.clip(generated(repeats) + at_own_shift, 0, 1),
        labels=(base > 0.5).astype(float),
        patients=[f"p{who:04d}" for who in of_patient],
    )
