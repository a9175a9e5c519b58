"""All metrics of one generator: what `evaluate` and the demo call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.attributes import attribute_metrics
from counterray.evaluation.composition import composition
from counterray.evaluation.counterfactuals import Counterfactuals, Editor, patients, pieces
from counterray.evaluation.features import LayerJudge
from counterray.evaluation.ground_truth import ground_truth_metrics
from counterray.evaluation.image_sets import (
    Measured,
    feature_metrics,
    naturalness_metrics,
    perceptual_metrics,
)
from counterray.evaluation.intervals import summarise
from counterray.evaluation.judged import area_metrics, finding_metrics, identity_metrics
from counterray.evaluation.metric import Judge, Metric, UnscorableError
from counterray.evaluation.pixel_error import mean_absolute_error
from counterray.evaluation.psnr import psnr
from counterray.evaluation.reversibility import reversibility
from counterray.evaluation.settings import DEFAULTS, Settings
from counterray.evaluation.ssim import ssim

EXACT = "exact by construction: what an image shows is kept where nothing else is asked"
"""Note of a law that holds whatever was learnt."""

_ROUNDING = 1e-4
"""Grey values, of the 2 between black and white, below which images are equal."""

Exact = Callable[[Batch, Batch], Tensor | None]
"""Sources and donors to their exact counterfactuals ``[B, 1, H, W]`` in [-1, 1], ``None`` where unknown."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The frozen networks that score, each ``None`` where there is none.

    Attributes:
        classifier: Probabilities ``[B, F]`` of the findings it names.
        segmentor: Probabilities ``[B, K, H, W]`` of the structures it names; those that a pathology covers
            (lesions) should not be among them, only anatomy whose area is to be kept.
        identity: Features ``[B, D]`` in which images of one patient are near each other.
        features: Features ``[B, D]`` by which sets of images are compared, see `feature_judge`.
        layers: Feature maps by which two images are compared, see `layer_judge`.
        attributes: Attribute to probabilities ``[B, K]`` of its levels.
    """

    classifier: Judge | None = None
    segmentor: Judge | None = None
    identity: Judge | None = None
    features: Judge | None = None
    layers: LayerJudge | None = None
    attributes: Mapping[str, Judge] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        metrics: All numbers.
        counterfactuals: The images behind them.
        absent: Metrics that were not computed, with the reason.
    """

    metrics: list[Metric]
    counterfactuals: Counterfactuals
    absent: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str, subset: str = "") -> Metric | None:
        """The metric of that name and subset, ``None`` where it was not computed."""
        return next((m for m in self.metrics if m.name == name and m.subset == subset), None)


def shuffled_donors(batch: Batch, *, seed: int = 0) -> Batch:
    """A donor for each row of the batch: its rows in a random order, none its own donor.

    Drawing donors whatever their labels makes targets independent of the sources, so that an editor that
    does nothing has an effectiveness of chance.

    Raises:
        UnscorableError: If the batch has fewer than two images.
    """
    if len(batch) < 2:
        raise UnscorableError(f"Swapping pathology needs at least 2 images; the batch has {len(batch)}.")
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    donor = torch.empty_like(order)
    donor[order] = order.roll(1)
    return batch.select(donor)


def with_attributes(source: Batch, donor: Batch, names: Collection[str]) -> Batch:
    """The sources with the donors' named attributes, and all else their own."""
    return replace(source, attributes={**source.attributes, **{n: donor.attributes[n] for n in names}})


def make_counterfactuals(
    edit: Editor,
    source: Batch,
    donor: Batch,
    *,
    exact: Exact | None = None,
    attributes: tuple[str, ...] = (),
    batch_size: int = 64,
) -> Counterfactuals:
    """The sources' counterfactuals and reconstructions, made in pieces of ``batch_size`` images."""
    images, reconstructions, truths = [], [], []
    for rows in pieces(len(source), batch_size):
        patient, other = source.select(rows), donor.select(rows)
        images.append(edit(patient.image, patient, other))
        reconstructions.append(edit(patient.image, patient, patient))
        truths.append(exact(patient, other) if exact else None)
    known = [truth for truth in truths if truth is not None]
    if known and len(known) < len(truths):
        raise ValueError(
            f"The exact counterfactuals are known for {len(known)} of {len(truths)} batches; they must be "
            "known for all or for none."
        )
    return Counterfactuals(
        source=source,
        donor=donor,
        image=torch.cat(images),
        reconstruction=torch.cat(reconstructions),
        exact=torch.cat(known) if known else None,
        attributes=attributes,
    )


def evaluate_counterfactuals(
    edit: Editor,
    source: Batch,
    donor: Batch,
    *,
    judges: Judges,
    exact: Exact | None = None,
    training: Batch | None = None,
    validation: Batch | None = None,
    prevalence: Mapping[str, float] | None = None,
    attributes: tuple[str, ...] = (),
    settings: Settings = DEFAULTS,
) -> Evaluation:
    """Makes counterfactuals and computes every metric that the data allow.

    Args:
        edit: The generator.
        source: Test images; also the gallery of re-identification.
        donor: Row by row, whose pathology the sources are given; or see `with_attributes`.
        judges: Networks that score, none of them seen by the generator's losses.
        exact: Gives the exact counterfactuals, for data whose causal model is known.
        training: Training images, for memorisation and the baseline "nearest image with the target findings".
        validation: Real images of other patients: thresholds are chosen on them, and sets of images compared
            with them.
        prevalence: Share of positives of each finding in the training data, for the effectiveness ratio.
        attributes: What the generator sets in place of pathology.
        settings: How they are scored.

    Raises:
        ValueError: If shapes differ or patients are not named.
        UnscorableError: If images are not finite, or a judge lacks a finding.
    """
    made = make_counterfactuals(
        edit, source, donor, exact=exact, attributes=attributes, batch_size=settings.batch_size
    )
    measured = Measured([*_reconstruction(made, settings), *_laws(edit, made, settings)])
    if judges.classifier is None:
        measured.absent["effectiveness, off-target change"] = "no classifier was given to score"
    else:
        measured.add(
            finding_metrics(
                made, judges.classifier, validation=validation, prevalence=prevalence, settings=settings
            )
        )
    measured.metrics += attribute_metrics(made, judges.attributes, settings=settings)
    if unread := sorted(set(attributes) - set(judges.attributes)):
        measured.absent[f"effectiveness of {', '.join(unread)}"] = (
            "no demographic judge was given that reads it"
        )
    if judges.identity is None:
        measured.absent["identity"] = "no identity encoder was given to score"
    else:
        measured.metrics += identity_metrics(made, judges.identity, settings=settings)
    if made.exact is None:
        measured.absent["ground truth error, area deviation"] = (
            "the exact counterfactuals of these images are not known; they are for data drawn from a known "
            "causal model, such as the phantom"
        )
    else:
        measured.metrics += ground_truth_metrics(made, made.exact, pool=training, seed=settings.seed)
        if judges.segmentor is None:
            measured.absent["area deviation"] = "no segmentor was given to measure"
        else:
            measured.metrics += area_metrics(made, made.exact, judges.segmentor, settings=settings)
    if judges.features is None:
        measured.absent["distances between sets of images, diversity, memorisation"] = (
            "no judge was given to compare images by its features"
        )
    else:
        measured.add(
            feature_metrics(made, judges.features, reference=validation, training=training, settings=settings)
        )
    if judges.layers is None:
        measured.absent["perceptual distance"] = "no judge was given to compare images by its layers"
    else:
        measured.metrics += perceptual_metrics(made, judges.layers, settings=settings)
    measured.add(naturalness_metrics(made, seed=settings.seed))
    return Evaluation(measured.metrics, made, measured.absent)


def _reconstruction(made: Counterfactuals, settings: Settings) -> list[Metric]:
    image, reference, who = made.reconstruction, made.source.image, patients(made.source)
    note = EXACT if float((image - reference).abs().max()) < _ROUNDING else ""
    return [
        summarise(name, values, patients=who, direction="higher", unit=unit, note=note, seed=settings.seed)
        for name, values, unit in (
            ("reconstruction_ssim", ssim(image, reference), ""),
            ("reconstruction_psnr", psnr(image, reference), "dB"),
        )
    ]


def _laws(edit: Editor, made: Counterfactuals, settings: Settings) -> list[Metric]:
    images = min(settings.law_images, len(made))
    errors: dict[tuple[str, int], list[Tensor]] = {}
    for rows in pieces(images, settings.batch_size):
        source, donor = made.source.select(rows), made.donor.select(rows)
        for cycle, error in composition(edit, source, cycles=settings.cycles).items():
            errors.setdefault(("composition_error", cycle), []).append(error)
        for cycle, error in reversibility(edit, source, donor, cycles=settings.cycles).items():
            errors.setdefault(("reversibility_error", cycle), []).append(error)
        # A copy, as an editor may tell the null intervention by its being the very patient.
        again = edit(source.image, source, replace(source))
        errors.setdefault(("redrawing_error", 1), []).append(mean_absolute_error(again, source.image))
    return [
        summarise(
            name,
            torch.cat(parts),
            patients=patients(made.source)[:images],
            direction="lower",
            subset="1 cycle" if cycle == 1 else f"{cycle} cycles",
            unit="of grey range",
            note=EXACT if name == "composition_error" and float(torch.cat(parts).max()) < _ROUNDING else "",
            seed=settings.seed,
        )
        for (name, cycle), parts in sorted(errors.items())
    ]
