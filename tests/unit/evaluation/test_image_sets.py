"""Sets of images in a feature space that is the image itself, so that every answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals
from counterray.evaluation.features import LayerJudge
from counterray.evaluation.image_sets import (
    LEAST_HELD_OUT,
    Measured,
    feature_metrics,
    naturalness_metrics,
    perceptual_metrics,
)
from counterray.evaluation.metric import Judge, as_json
from counterray.evaluation.settings import Settings

CORNER = Judge(name="corner", checksum="ab", predict=lambda image: image[:, 0, :2, :2].flatten(1))
LAYERS = LayerJudge(name="layers", checksum="cd", layers=lambda image: [torch.cat([image, 1 - image], dim=1)])


def batch(who: str, count: int = 120, size: int = 8, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        image=torch.rand(count, 1, size, size, generator=random) * 2 - 1,
        attributes={},
        findings=(torch.arange(count)[:, None] % torch.tensor([2, count]) == 0).float(),
        finding_mask=torch.ones(count, 2, dtype=torch.bool),
        finding_names=("edema", "fracture"),
        patient_ids=tuple(f"{who}{row}" for row in range(count)),
    )


def made(image: Tensor | None = None, exact: Tensor | None = None, **options: int) -> Counterfactuals:
    source = batch("test", **options)
    donor = source.select(torch.arange(len(source)).roll(2))
    image = source.image.flip(0) if image is None else image
    return Counterfactuals(source=source, donor=donor, image=image, reconstruction=source.image, exact=exact)


def values(measured: Measured) -> dict[str, float]:
    return {name: metric["value"] for name, metric in as_json(measured.metrics).items()}


def test_draws_of_one_distribution_are_told_from_nothing() -> None:
    measured = feature_metrics(
        made(),
        CORNER,
        reference=batch("other", seed=1),
        training=batch("train", seed=2),
        settings=Settings(minimum_positives=50),
    )
    found = values(measured)
    [kernel] = [metric for metric in measured.metrics if metric.name == "kernel_distance"]
    assert kernel.low < 0 < kernel.high
    assert found["frechet_distance"] < 0.1
    assert found["precision"] > 0.9
    assert found["recall"] > 0.9
    # The same images in another order: as varied as they are.
    assert found["pairwise_distance_ratio[edema]"] == pytest.approx(1.0, abs=0.1)
    assert found["nearest_training_distance_ratio"] == pytest.approx(1.0)
    assert measured.absent == {
        "diversity of fracture": "fewer than 50 images, generated or real, show it",
    }
    assert {metric.judge for metric in measured.metrics} == {"corner:ab"}


def test_copies_of_training_images_are_found() -> None:
    training = batch("train", seed=2)
    found = values(feature_metrics(made(training.image), CORNER, training=training))
    assert found["near_copies"] == 1.0
    assert found["near_copy_membership"] == 1.0
    assert found["nearest_training_distance_ratio"] == 0.0


def test_images_that_are_all_alike_have_no_diversity() -> None:
    source = batch("test")
    found = values(feature_metrics(made(source.image[:1].expand_as(source.image)), CORNER))
    assert found["pairwise_distance_ratio[edema]"] == 0.0


def test_what_data_do_not_allow_is_absent_with_its_reason() -> None:
    measured = feature_metrics(made(count=5), CORNER, reference=batch("other"), training=batch("train"))
    assert {metric.name for metric in measured.metrics} == {
        "frechet_distance",
        "frechet_distance_extrapolated",
        "kernel_distance",
    }
    assert (
        "more than 5 images of each kind, and of one there are 5"
        in (measured.absent["precision, recall, density, coverage"])
    )
    assert f"needs {LEAST_HELD_OUT} held-out images, and there are 5" in measured.absent["memorisation"]
    alone = feature_metrics(made(), CORNER).absent
    assert "validation" in alone["distances between sets of images, precision, recall"]
    assert alone["memorisation"] == "no training images were given"


def test_real_images_of_the_edited_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="120 patients are both edited and reference images"):
        feature_metrics(made(), CORNER, reference=batch("test", seed=1))


def test_perceptual_distance_is_taken_from_input_and_truth() -> None:
    source = batch("test").image
    found = {m.subset: m for m in perceptual_metrics(made(source.flip(0), exact=source.flip(0)), LAYERS)}
    assert found["reconstruction"].value == 0.0
    assert found["against the exact counterfactual"].value == 0.0
    assert found["counterfactual"].value > 0.0
    assert found["counterfactual"].direction == "none"
    assert "against the exact counterfactual" not in {m.subset for m in perceptual_metrics(made(), LAYERS)}


def test_niqe_is_left_out_of_small_images_and_taken_of_large_ones() -> None:
    assert naturalness_metrics(made()).absent == {
        "NIQE": "it needs images of at least 192 × 192 px, and these have 8 × 8"
    }
    measured = naturalness_metrics(made(count=4, size=192), images=3)
    assert {(metric.key, metric.n) for metric in measured.metrics} == {
        ("niqe[counterfactual]", 3),
        ("niqe[real images]", 3),
    }
    assert all(math.isfinite(metric.value) for metric in measured.metrics)
