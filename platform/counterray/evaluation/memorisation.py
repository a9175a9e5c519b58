"""Memorisation: are generated images closer to training images than unseen real ones are?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterray.evaluation.counterfactuals import pieces
from counterray.evaluation.features import checked
from counterray.evaluation.intervals import Floats, Rows, summarise
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import TwoSamples, two_sample_bootstrap

NEAR_COPY_PERCENTILE = 1.0
"""Percentile of unseen real images' distances to the training images, below which an image is a near copy."""

CHUNK = 1024
"""Rows of a distance matrix at a time."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each of n images.

    Attributes:
        distance: ``[n]`` Euclidean distance of features.
        index: ``[n]`` row of that training image.
    """

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class NearCopyGate:
    """Tells images that are nearly training images.

    Attributes:
        training: Features ``[N, D]`` of the training images, in float64.
        threshold: Distance below which an image is a near copy.
    """

    training: Tensor
    threshold: float

    def near_copies(self, features: Tensor) -> Tensor:
        """Which of n images are near copies, ``[n]`` bool, from their features ``[n, D]``."""
        return nearest(features, self.training).distance < self.threshold


def nearest(
    features: Tensor,
    training: Tensor,
    *,
    patients: Sequence[str] = (),
    training_patients: Sequence[str] = (),
) -> Neighbours:
    """The nearest training image of each image, by Euclidean distance of features.

    Args:
        features: ``[n, D]``.
        training: ``[N, D]``.
        patients: Whose images the n ones were made from. Where these are named, so must be those of the
            training images, and images of the own patient are left out: an edit is to resemble them.
        training_patients: The patients of the N training images.

    Returns:
        Neighbours; at distance ∞ where no training image is of another patient.

    Raises:
        ValueError: If the features are no finite matrices of the same width, or not all images name a
            patient.
    """
    ours, theirs = checked(features, "Nearest training image"), checked(training, "Training images")
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"Nearest training image: images have {ours.shape[1]} features and training images "
            f"{theirs.shape[1]}; take both from one judge."
        )
    own = None
    if patients or training_patients:
        if (len(patients), len(training_patients)) != (len(ours), len(theirs)):
            raise ValueError(
                f"Nearest training image: {len(patients)} patients of {len(ours)} images and "
                f"{len(training_patients)} of {len(theirs)} training images; one each is needed, or none."
            )
        codes = {patient: code for code, patient in enumerate(dict.fromkeys(training_patients))}
        theirs_of = torch.tensor([codes[patient] for patient in training_patients])
        own = torch.tensor([codes.get(patient, -1) for patient in patients])
    found = []
    for rows in pieces(len(ours), CHUNK):
        distance = torch.cdist(ours[rows], theirs, compute_mode="donot_use_mm_for_euclid_dist")
        if own is not None:
            distance = distance.masked_fill(own[rows, None] == theirs_of, torch.inf)
        found.append(distance.min(dim=1))
    return Neighbours(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def calibrate_gate(
    training: Tensor, held_out: Tensor, *, percentile: float = NEAR_COPY_PERCENTILE
) -> NearCopyGate:
    """A gate that lets all but ``percentile`` percent of unseen real images pass.

    Args:
        training: Features ``[N, D]`` of the training images.
        held_out: Features ``[m, D]`` of real images of other patients.
        percentile: Of their distances to the nearest training image, between 0 and 100.

    Raises:
        ValueError: If the features do not fit, or there are too few held-out images for the percentile.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"Near copies: percentile ({percentile:g}) must lie between 0 and 100.")
    needed = int(np.ceil(100 / percentile))
    if len(held_out) < needed:
        raise ValueError(
            f"Near copies: {len(held_out)} held-out images do not show percentile {percentile:g} of their "
            f"distances; give at least {needed}, or raise the percentile."
        )
    distance = nearest(held_out, training).distance
    return NearCopyGate(
        checked(training, "Training images"), float(np.percentile(distance.numpy(), percentile))
    )


def memorisation_metrics(
    samples: TwoSamples,
    training: Tensor,
    *,
    training_patients: Sequence[str],
    percentile: float = NEAR_COPY_PERCENTILE,
    seed: int = 0,
) -> list[Metric]:
    """Closeness to the training images, share of near copies, and whether those are of training images.

    - ``nearest_training_distance_ratio``: median distance of a generated image to its nearest training
      image, over that of a held-out real image. 1 is what unseen images have; below 1 is memorisation.
    - ``near_copies``: share of generated images nearer to a training image than all but ``percentile``
      percent of held-out images are; that share is what a generator without memory has.
    - ``near_copy_membership``: of the generated images that are, by the same threshold, near copies of one
      of equally many training and held-out images, the share that copies a training image. 0.5 where the
      near copies say nothing about who was trained on, 1 where they give it away.

    Args:
        samples: Generated images, and held-out real ones of patients that the generator was not trained on.
        training: Features ``[N, D]`` of the images that the generator was trained on.
        training_patients: The patients of the N training images; an image is not compared with those of the
            patient that it was made from.
        percentile: Of the threshold.
        seed: Of the bootstrap and of the draw of equally many images.

    Raises:
        ValueError: As `nearest` and `calibrate_gate`.

    Reference: nearest-neighbour comparison with held-out data: Meehan et al., 2020,
        https://arxiv.org/abs/2004.05675, section 3, with a ratio in place of its rank test.
    """
    patients = samples.patients
    gate = calibrate_gate(training, samples.real, percentile=percentile)
    distance = nearest(
        samples.generated, training, patients=patients, training_patients=training_patients
    ).distance
    member, of_either = _membership(samples, gate, training_patients, seed=seed)
    return [
        _ratio_metric(samples, distance.numpy(), training, seed=seed),
        summarise(
            "near_copies",
            (distance < gate.threshold).double(),
            patients=patients,
            direction="lower",
            unit="of images",
            note=f"nearer than {gate.threshold:.3g}; {percentile:g} % of unseen real images are",
            judge=samples.judge,
            seed=seed,
        ),
        summarise(
            "near_copy_membership",
            member[of_either].double(),
            patients=[who for who, copy in zip(patients, of_either.tolist(), strict=True) if copy],
            direction="lower",
            unit="of near copies",
            note="of a training rather than a held-out image, among equally many; 0.5 is chance"
            if of_either.any()
            else "there is no near copy of equally many training and held-out images",
            judge=samples.judge,
            seed=seed,
        ),
    ]


def _membership(
    samples: TwoSamples, gate: NearCopyGate, training_patients: Sequence[str], *, seed: int
) -> tuple[Tensor, Tensor]:
    """Of equally many training and held-out images: whether the nearest is of training, and a near copy."""
    size = min(len(gate.training), len(samples.real))
    random = torch.Generator().manual_seed(seed)
    distances = []
    for images, who in ((gate.training, training_patients), (samples.real, samples.real_patients)):
        rows = torch.randperm(len(images), generator=random)[:size]
        drawn = [who[row] for row in rows.tolist()]
        found = nearest(samples.generated, images[rows], patients=samples.patients, training_patients=drawn)
        distances.append(found.distance)
    to_members, to_others = distances
    return to_members < to_others, torch.minimum(to_members, to_others) < gate.threshold


def _ratio_metric(samples: TwoSamples, ours: Floats, training: Tensor, *, seed: int) -> Metric:
    theirs = nearest(samples.real, training).distance.numpy()

    def statistic(rows: Rows, held_out_rows: Rows) -> Floats:
        reference = np.median(theirs[held_out_rows])
        return np.array([np.median(ours[rows]) / reference if reference > 0 else np.nan])

    [value] = statistic(np.arange(len(ours)), np.arange(len(theirs)))
    [interval] = two_sample_bootstrap(statistic, samples.patients, samples.real_patients, seed=seed)
    return Metric(
        name="nearest_training_distance_ratio",
        value=float(value),
        low=interval.low,
        high=interval.high,
        n=len(ours),
        judge=samples.judge,
        direction="none",
        note=f"{len(training)} training and {len(theirs)} held-out images; 1 is as far as unseen ones",
    )
