"""Replicates on the phantom: a classifier and a generator fitted to some patients, other patients audited.

The attribute is ``group``, drawn by lot for each patient from its first two levels, so that nothing hangs on
it but its own trace in the image: a tint, which is a multiple of the pixel's column. The classifier sees
nothing of the margins, where air and shoulders are clipped to black and white and the tint with them;
constant and pixel coordinates are projected out of the rest. It is invariant but for the rounding to grey
levels.

Letters: M = studies of the pool, n = rows, S = edge of the images [px], Q = covariates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from counterray.audits.errors import Codes
from counterray.audits.image_worlds import youden_threshold
from counterray.audits.scores import CounterfactualScores, Target
from counterray.audits.worlds.generators import LevelRegression
from counterray.causal.mechanism import Values
from counterray.data.phantom.population import draw_population
from counterray.data.phantom.randomness import SEED_LIMIT
from counterray.data.phantom.render import Renderer
from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY
from counterray.evaluation.intervals import Floats
from jobs.reproduction.cit_lr.experiment import PhantomCalibration

PhantomGenerator = Literal["exact_redrawn", "learned", "learned_alone"]

LEVELS = VOCABULARY["group"][:2]

_THUMBNAIL = 7
"""Edge of what the classifier looks at [cells]."""

_MARGIN = 1 / 16
"""Share of the columns at either side that clip in some patients; of the rows twice that, at the top."""


@dataclass(frozen=True)
class PhantomPool:
    """Rendered studies, from which each replicate draws its patients.

    Attributes:
        observed: ``[M, S²]`` in [-1, 1].
        redrawn: ``[3, M, S²]``, the same patients and disease at level 0, level 1 and the own level, each
            drawn with other noise; without rows where no exact generator is asked for.
        own: ``[M]`` level drawn by lot, one for each patient.
        covariates: ``[M, Q]`` sex, age, scanner and the severity of each finding.
        ill: ``[M]`` whether the study shows the finding.
        patients: The patient of each study.
    """

    observed: Floats
    redrawn: Floats
    own: Codes
    covariates: Floats
    ill: Codes
    patients: tuple[str, ...]

    @classmethod
    def render(cls, settings: PhantomCalibration, *, exact: bool) -> PhantomPool:
        """Draws the pool; ``exact`` also draws it at each level with other noise."""
        population = draw_population(settings.seed, 0, settings.pool, image_size=settings.image_size)
        random = np.random.default_rng(settings.seed)
        people, who = np.unique(population.patient, return_inverse=True)
        own = random.integers(0, len(LEVELS), len(people))[who]
        record = {**population.values, "group": torch.from_numpy(own.astype(np.float64))}
        redrawn = [
            _drawn(record, level, settings.image_size, random)
            for level in ((0 * own, 0 * own + 1, own) if exact else ())
        ]
        one_hot = np.eye(len(VOCABULARY["scanner"]))[record["scanner"].long().numpy()][:, 1:]
        severities = [record[f"severity.{name}"].numpy() for name in FINDING_NAMES]
        continuous = np.stack([record["sex"].numpy(), record["age"].numpy(), *severities], axis=1)
        return cls(
            observed=_drawn(record, own, settings.image_size, None),
            redrawn=np.stack(redrawn) if exact else np.empty((3, 0, settings.image_size**2)),
            own=own,
            covariates=np.concatenate([continuous, one_hot], axis=1),
            ill=(record[f"severity.{settings.finding}"].numpy() > 0).astype(np.int64),
            patients=tuple(f"{patient:06d}" for patient in population.patient),
        )


def phantom_scores(
    pool: PhantomPool, generator: PhantomGenerator, settings: PhantomCalibration, *, seed: int
) -> CounterfactualScores:
    """What one invariant classifier says of freshly drawn patients and of their counterfactuals.

    Patients are drawn from the pool without replacement, all their studies with them, until there are
    ``learning`` studies to fit on and then ``individuals`` to audit.
    """
    random = np.random.default_rng([settings.seed, seed])
    learning, audited = _drawn_patients(pool, settings, random)
    classifier = TintBlind.fit(pool.observed[learning], pool.ill[learning])
    if generator == "exact_redrawn":
        images = pool.redrawn[:, audited]
        intervened, placebo = list(images[:2]), list(images[2:])
    else:
        null = settings.null_generators if generator == "learned" else 0
        intervened, placebo = _learned(pool, learning, audited, null, random)
    own = pool.own[audited]
    return CounterfactualScores(
        attribute="group",
        levels=LEVELS,
        targets=[Target(classifier="tint-blind", finding=settings.finding, threshold=classifier.threshold)],
        observed=classifier.scores(pool.observed[audited])[None],
        intervened=np.stack([classifier.scores(part) for part in intervened], axis=-1)[None],
        placebo=np.stack([classifier.scores(part) for part in placebo], axis=-1)[None],
        own=own,
        labels=pool.ill[audited].astype(np.float64)[None],
        patients=[pool.patients[row] for row in audited],
        placebo_unit="generator" if generator == "learned" else "individual",
    )


@dataclass(frozen=True)
class TintBlind:
    """Logistic regression on thumbnails of images, their margins and what lies along coordinates left out."""

    model: Any
    threshold: float

    @classmethod
    def fit(cls, images: Floats, ill: Codes) -> TintBlind:
        """Of images ``[n, S²]``, with Youden's threshold."""
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        seen = images @ _view(images.shape[1])
        model.fit(seen, ill)
        return cls(model, youden_threshold(model.predict_proba(seen)[:, 1], ill.astype(np.float64)))

    def scores(self, images: Floats) -> Floats:
        """Probabilities ``[n]``."""
        found: Floats = self.model.predict_proba(images @ _view(images.shape[1]))[:, 1]
        return found


def _view(pixels: int) -> Floats:
    """``[S², 49]``: margins cut off, constant and coordinates projected out, then means over cells."""
    size = round(pixels**0.5)
    margin = round(_MARGIN * size)
    place = np.arange(size)
    rows, columns = np.repeat(place, size), np.tile(place, size)
    inner = np.flatnonzero((rows >= 2 * margin) & (columns >= margin) & (columns < size - margin))
    edge = size - 2 * margin
    coordinates = np.stack([rows, columns], axis=1)[inner] - size / 2
    directions, _ = np.linalg.qr(np.column_stack([np.ones(len(inner)), coordinates]))
    down, across = rows[inner] - 2 * margin, columns[inner] - margin
    cell = (down * _THUMBNAIL // edge) * _THUMBNAIL + across * _THUMBNAIL // edge
    cells = np.eye(_THUMBNAIL**2)[cell]
    means = cells / cells.sum(axis=0)
    view = np.zeros((pixels, _THUMBNAIL**2))
    view[inner] = means - directions @ (directions.T @ means)
    return view


def _learned(
    pool: PhantomPool, learning: Codes, audited: Codes, null: int, random: np.random.Generator
) -> tuple[list[Floats], list[Floats]]:
    """Images at both levels by a learned generator, and those of its null interventions.

    Each pixel is a linear function of the covariates for each level, fitted to the learning rows; the
    residual is kept. Null generators are fitted to levels that were shuffled over patients and change each
    individual's shuffled level; without any, the null intervention is the generator's own at the own level.
    """
    rows = np.concatenate([learning, audited])

    def fitted(own: Codes) -> tuple[LevelRegression, Codes]:
        regression = LevelRegression(pool.covariates[learning], pool.observed[learning], own[: len(learning)])
        return regression, own[len(learning) :]

    def moved(regression: LevelRegression, own: Codes, asked: Codes) -> Floats:
        covariates = pool.covariates[audited]
        change = regression.mean(covariates, asked) - regression.mean(covariates, own)
        return pool.observed[audited] + change

    real, own = fitted(pool.own[rows])
    intervened = [moved(real, own, np.full(len(own), level)) for level in range(len(LEVELS))]
    if not null:
        return intervened, [moved(real, own, own)]
    people, who = np.unique([pool.patients[row] for row in rows], return_inverse=True)
    by_patient = np.empty(len(people), dtype=np.int64)
    by_patient[who] = pool.own[rows]
    placebo = []
    for _ in range(null):
        regression, shuffled = fitted(random.permutation(by_patient)[who])
        placebo.append(moved(regression, shuffled, 1 - shuffled))
    return intervened, placebo


def _drawn_patients(
    pool: PhantomPool, settings: PhantomCalibration, random: np.random.Generator
) -> tuple[Codes, Codes]:
    _, who = np.unique(pool.patients, return_inverse=True)
    order = random.permutation(int(who.max()) + 1)[who]
    rows = np.argsort(order, kind="stable")
    # A patient's studies stay together: each part ends with the patient who fills it.
    ends = np.flatnonzero(np.diff(order[rows], append=-1)) + 1
    first = int(ends[np.searchsorted(ends, settings.learning)])
    second = int(ends[np.searchsorted(ends, first + settings.individuals)])
    return rows[:first], rows[first:second]


def _drawn(record: Values, level: Codes, size: int, random: np.random.Generator | None) -> Floats:
    """Images ``[n, S²]`` of records at levels, with the noise on record, or with other noise."""
    noise = record["noise_seed"].numpy()
    if random is not None:
        noise = random.integers(0, SEED_LIMIT, len(noise)).astype(np.float64)
    seeds = np.stack([record["patient_seed"].numpy(), noise], axis=1)
    group = torch.from_numpy(np.asarray(level, dtype=np.float64))
    images = Renderer(size).predict(torch.from_numpy(seeds), {**record, "group": group})
    return np.asarray(images.flatten(1).double().numpy())
