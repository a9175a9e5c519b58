from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterray.evaluation.memorisation import NearCopyGate, calibrate_gate, memorisation_metrics, nearest
from counterray.evaluation.metric import Metric
from tests.feature_samples import people, two_samples


def normal(n: int, *, seed: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def metrics_of(generated: Tensor, patients: list[str] | None = None) -> dict[str, Metric]:
    samples = two_samples(generated, normal(200, seed=2), patients=patients)
    found = memorisation_metrics(samples, normal(400, seed=1), training_patients=people(400, "t"))
    return {metric.name: metric for metric in found}


def test_nearest_by_hand() -> None:
    found = nearest(torch.tensor([[0.0, 0.0], [6.0, 8.0]]), torch.tensor([[3.0, 4.0], [6.0, 7.0]]))
    assert found.distance.tolist() == [5.0, 1.0]
    assert found.index.tolist() == [0, 1]


def test_nearest_in_chunks_is_nearest() -> None:
    many, training = normal(2500, seed=3), normal(7, seed=4)
    found = nearest(many, training)
    assert found.index.tolist() == torch.cdist(many, training).argmin(dim=1).tolist()


def test_images_of_the_own_patient_are_left_out() -> None:
    training = torch.tensor([[1.0], [2.0], [5.0]])
    found = nearest(
        torch.tensor([[0.0], [0.0], [0.0]]),
        training,
        patients=["a", "b", "stranger"],
        training_patients=["a", "a", "b"],
    )
    assert found.distance.tolist() == [5.0, 1.0, 1.0]
    alone = nearest(torch.zeros(1, 1), training, patients=["a"], training_patients=["a"] * 3)
    assert alone.distance.tolist() == [math.inf]


def test_edits_may_resemble_the_patients_that_they_were_made_from() -> None:
    edits = metrics_of(normal(400, seed=1)[:100] + 1e-3, people(100, "t"))
    assert edits["near_copies"].value < 0.1
    assert edits["nearest_training_distance_ratio"].value > 0.9


def test_the_threshold_is_the_percentile_of_held_out_distances() -> None:
    training = torch.zeros(1, 1)
    held_out = torch.arange(1.0, 102.0)[:, None]  # distances 1 … 101, percentile 1 is the second: 2
    gate = calibrate_gate(training, held_out)
    assert gate.threshold == pytest.approx(2.0)
    assert gate.near_copies(torch.tensor([[1.9], [-1.9], [2.0], [50.0]])).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_a_gate_of_one_training_image() -> None:
    gate = NearCopyGate(training=torch.zeros(1, 2, dtype=torch.float64), threshold=0.5)
    assert gate.near_copies(torch.tensor([[0.3, 0.4], [0.1, 0.1]])).tolist() == [False, True]


def test_a_generator_that_copies_is_found_out() -> None:
    training = normal(400, seed=1)
    copied = metrics_of(training[:100] + 1e-3)
    assert copied["near_copies"].value == 1.0
    assert copied["nearest_training_distance_ratio"].high < 0.01
    # Half of the training images sit in the mix, so about half of the copies are near copies of one there.
    assert copied["near_copy_membership"].value > 0.95
    assert 30 < copied["near_copy_membership"].n < 70


def test_near_copies_of_both_kinds_tell_nothing_of_membership() -> None:
    both = metrics_of(torch.cat([normal(400, seed=1)[:200], normal(200, seed=2)]) + 1e-3)
    assert both["near_copy_membership"].value == pytest.approx(1 / 3, abs=0.05)  # half of 200 against 200
    assert both["near_copies"].value == pytest.approx(0.5, abs=0.05)


def test_a_generator_that_draws_from_the_distribution_passes() -> None:
    fresh = metrics_of(normal(300, seed=7))
    ratio = fresh["nearest_training_distance_ratio"]
    assert ratio.low < 1 < ratio.high
    assert fresh["near_copies"].low <= 0.01 <= max(fresh["near_copies"].high, 0.03)
    assert "1 % of unseen real images are" in fresh["near_copies"].note


def test_without_near_copies_there_is_no_membership() -> None:
    far = metrics_of(normal(30, seed=7) + 100)
    assert far["near_copies"].value == 0.0
    assert math.isnan(far["near_copy_membership"].value)
    assert far["near_copy_membership"].note.startswith("there is no near copy")
    assert far["nearest_training_distance_ratio"].value > 10


def test_held_out_images_that_are_copies_leave_no_ratio() -> None:
    training = normal(200, seed=1)
    samples = two_samples(normal(5, seed=2), training)
    found = memorisation_metrics(samples, training, training_patients=people(200, "t"))
    assert math.isnan(found[0].value)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"50 held-out images do not show percentile 1 .* at least 100"):
        calibrate_gate(normal(10, seed=1), normal(50, seed=2))
    with pytest.raises(ValueError, match=r"percentile \(0\) must lie between 0 and 100"):
        calibrate_gate(normal(10, seed=1), normal(50, seed=2), percentile=0)
    with pytest.raises(ValueError, match="have 6 features and training images 5"):
        nearest(normal(3, seed=1), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="0 patients of 3 images and 2 of 3 training images; one each"):
        nearest(normal(3, seed=1), normal(3, seed=2), training_patients=["a", "b"])
    samples = two_samples(normal(5, seed=1)[:, :5], normal(200, seed=2))
    with pytest.raises(ValueError, match="have 5 features and training images 6"):
        memorisation_metrics(samples, normal(9, seed=1), training_patients=people(9, "t"))
