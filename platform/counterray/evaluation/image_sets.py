"""Generated images as a set: how far from unseen real images, how varied, and how near to training images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.diversity import diversity_metrics
from counterray.evaluation.features import LayerJudge, extract_features
from counterray.evaluation.frechet import frechet_metrics
from counterray.evaluation.intervals import summarise
from counterray.evaluation.kernel_distance import kernel_metric
from counterray.evaluation.memorisation import NEAR_COPY_PERCENTILE, memorisation_metrics
from counterray.evaluation.metric import Direction, Judge, Metric
from counterray.evaluation.niqe import SMALLEST, niqe_metric
from counterray.evaluation.perceptual import perceptual_distance
from counterray.evaluation.precision_recall import NEIGHBOURS, precision_recall_metrics
from counterray.evaluation.settings import DEFAULTS, Settings
from counterray.evaluation.two_sample import TwoSamples

NIQE_IMAGES = 64
"""Images that NIQE is taken of, the first ones: at 512 px it takes a good part of a second for each."""

LEAST_HELD_OUT = math.ceil(100 / NEAR_COPY_PERCENTILE)
"""Held-out images that the threshold of near copies needs."""


@dataclass
class Measured:
    """Metrics, and which could not be computed.

    Attributes:
        metrics: The numbers.
        absent: What is missing, with the reason.
    """

    metrics: list[Metric] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        """Takes over what the other has."""
        self.metrics += other.metrics
        self.absent |= other.absent


def feature_metrics(
    made: Counterfactuals,
    judge: Judge,
    *,
    reference: Batch | None = None,
    training: Batch | None = None,
    settings: Settings = DEFAULTS,
) -> Measured:
    """All that compares sets of images by a judge's features.

    Args:
        made: What is evaluated.
        judge: Features ``[B, D]``, see `feature_judge`.
        reference: Real images that the generator was not trained on, of other patients than the sources: a
            counterfactual lies near its own source, so distances to the sources would flatter an editor that
            changes little, and the known bias of small samples would not hold.
        training: What the generator was trained on, for memorisation.
        settings: How they are scored.

    Returns:
        Fréchet and kernel distance; precision, recall, density, coverage; diversity by finding; memorisation.
    """

    def features(image: Tensor) -> Tensor:
        return extract_features(judge, image, batch_size=settings.batch_size)

    who = patients(made.source)
    samples = TwoSamples(
        generated=features(made.image),
        real=features(made.source.image),
        patients=who,
        real_patients=who,
        judge=judge.label,
    )
    measured = Measured()
    if reference is None:
        measured.absent["distances between sets of images, precision, recall"] = (
            "there are no validation images, which would be real ones of other patients"
        )
    else:
        others = replace(samples, real=features(reference.image), real_patients=patients(reference))
        measured.add(_distances(others, seed=settings.seed))
    measured.add(_diversity(made, samples, settings))
    if training is None:
        measured.absent["memorisation"] = "no training images were given"
    elif len(made) < LEAST_HELD_OUT:
        measured.absent["memorisation"] = (
            f"its threshold needs {LEAST_HELD_OUT} held-out images, and there are {len(made)}"
        )
    else:
        measured.metrics += memorisation_metrics(
            samples,
            features(training.image),
            training_patients=patients(training),
            seed=settings.seed,
        )
    return measured


def _distances(samples: TwoSamples, *, seed: int) -> Measured:
    shared = len(set(samples.patients) & set(samples.real_patients))
    if shared:
        raise ValueError(
            f"{shared} patients are both edited and reference images, but distances need real "
            "images of other patients; score another split."
        )
    measured = Measured([*frechet_metrics(samples, seed=seed), kernel_metric(samples, seed=seed)])
    fewest = min(len(samples.generated), len(samples.real))
    if fewest > NEIGHBOURS:
        measured.metrics += precision_recall_metrics(samples, seed=seed)
    else:
        measured.absent["precision, recall, density, coverage"] = (
            f"they need more than {NEIGHBOURS} images of each kind, and of one there are {fewest}"
        )
    return measured


def _diversity(made: Counterfactuals, samples: TwoSamples, settings: Settings) -> Measured:
    """Diversity by finding, of the counterfactuals that were to show it and of the sources that do."""
    measured = Measured()
    few = []
    for column, name in enumerate(made.source.finding_names):
        rows, real_rows = (
            torch.nonzero((batch.findings[:, column] > 0.5) & batch.finding_mask[:, column].bool()).flatten()
            for batch in (made.donor, made.source)
        )
        if min(len(rows), len(real_rows)) < settings.minimum_positives:
            few.append(name.replace("_", " "))
            continue
        with_finding = replace(
            samples,
            generated=samples.generated[rows],
            real=samples.real[real_rows],
            patients=[samples.patients[row] for row in rows.tolist()],
            real_patients=[samples.real_patients[row] for row in real_rows.tolist()],
            subset=name,
        )
        measured.metrics += diversity_metrics(with_finding, seed=settings.seed)
    if few:
        measured.absent[f"diversity of {', '.join(few)}"] = (
            f"fewer than {settings.minimum_positives} images, generated or real, show it"
        )
    return measured


def perceptual_metrics(
    made: Counterfactuals, judge: LayerJudge, *, settings: Settings = DEFAULTS
) -> list[Metric]:
    """Perceptual distance of what was made from what it is to be like, and from what was there before."""
    pairs: list[tuple[str, Tensor, Tensor | None, Direction, str]] = [
        ("reconstruction", made.reconstruction, made.source.image, "lower", "from the input"),
        ("counterfactual", made.image, made.source.image, "none", "from the input: how much was changed"),
        ("against the exact counterfactual", made.image, made.exact, "lower", ""),
    ]
    return [
        summarise(
            "perceptual_distance",
            perceptual_distance(image, reference, judge, batch_size=settings.batch_size),
            patients=patients(made.source),
            direction=direction,
            judge=judge.label,
            subset=subset,
            note=note,
            seed=settings.seed,
        )
        for subset, image, reference, direction, note in pairs
        if reference is not None
    ]


def naturalness_metrics(made: Counterfactuals, *, images: int = NIQE_IMAGES, seed: int = 0) -> Measured:
    """NIQE of generated and real images, the first ``images``; left out where images are too small for it."""
    height, width = made.image.shape[-2:]
    if min(height, width) < SMALLEST:
        reason = f"it needs images of at least {SMALLEST} × {SMALLEST} px, and these have {height} × {width}"
        return Measured(absent={"NIQE": reason})
    who = patients(made.source)[:images]
    return Measured(
        [
            niqe_metric(made.image[:images], patients=who, subset="counterfactual", seed=seed),
            niqe_metric(made.source.image[:images], patients=who, subset="real images", seed=seed),
        ]
    )
