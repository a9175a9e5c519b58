from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from counterray.evaluation.frechet import frechet_distance, frechet_metrics
from counterray.evaluation.metric import Metric
from counterray.evaluation.two_sample import TwoSamples
from tests.feature_samples import people, two_samples

DOUBLE = torch.float64


def normal(n: int, width: int, *, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    return torch.randn(n, width, generator=random, dtype=DOUBLE) @ mixing * scale + mean


def frechet_metric(samples: TwoSamples, *, resamples: int = 100) -> Metric:
    return frechet_metrics(samples, resamples=resamples)[0]


class Flat(nn.Module):
    """A feature extractor for torchmetrics: the pixels themselves."""

    num_features = 12

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def test_one_feature_by_hand() -> None:
    # Means 1 and 4, unbiased variances 1 and 4: (4 - 1)² + 1 + 4 - 2 · √(1 · 4).
    ours, theirs = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.0], [4.0], [6.0]])
    assert frechet_distance(ours, theirs) == pytest.approx(9 + 1 + 4 - 4)


def test_independent_features_add_up_by_hand() -> None:
    # Each feature: variances 2 and 8 (two points each), equal means: 2 + 8 - 2 · 4 = 2.
    ours = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    assert frechet_distance(ours, 2 * ours) == pytest.approx(2 * (2 + 8 - 8) / 3)


@pytest.mark.parametrize("n", [8, 200])
def test_it_agrees_with_an_independent_computation(n: int) -> None:
    ours, theirs = normal(n, 12, seed=1, mean=0.3, scale=1.2), normal(n + 50, 12, seed=2)
    one, two = np.cov(ours.numpy().T), np.cov(theirs.numpy().T)
    # The other road: eigenvalues of the product, which is not symmetric, as scipy finds them.
    cross = np.sqrt(scipy.linalg.eigvals(one @ two).astype(complex)).real.sum()
    shift = ours.numpy().mean(0) - theirs.numpy().mean(0)
    expected = shift @ shift + np.trace(one) + np.trace(two) - 2 * cross
    assert frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-7 if n > 12 else 1e-4)


def test_it_agrees_with_torchmetrics() -> None:
    ours, theirs = normal(300, 12, seed=1, mean=0.3, scale=1.2), normal(260, 12, seed=2)
    reference = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2))
    reference.set_dtype(DOUBLE)
    reference.update(ours.reshape(-1, 3, 2, 2), real=False)
    reference.update(theirs.reshape(-1, 3, 2, 2), real=True)
    assert abs(frechet_distance(ours, theirs) - float(reference.compute())) < 1e-4


def test_equal_samples_are_at_distance_zero() -> None:
    features = normal(40, 64, seed=3)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-5)


def test_the_interval_is_about_the_value_and_shrinks_with_patients() -> None:
    def metric(n: int) -> tuple[float, float, float]:
        found = frechet_metric(two_samples(normal(n, 4, seed=1, mean=1.0), normal(n, 4, seed=2)))
        return found.low, found.value, found.high

    low, value, high = metric(60)
    narrow_low, narrow_value, narrow_high = metric(960)
    assert low < value < high
    assert 2 < (high - low) / (narrow_high - narrow_low) < 8  # √16 = 4
    assert narrow_low < narrow_value < narrow_high


def test_images_of_one_patient_are_drawn_together() -> None:
    ours, theirs = normal(60, 3, seed=1), normal(60, 3, seed=2)
    twice = [f"p{row // 2}" for row in range(120)]
    single = frechet_metric(two_samples(ours, theirs))
    double = frechet_metric(
        two_samples(
            ours.repeat_interleave(2, 0),
            theirs.repeat_interleave(2, 0),
            patients=twice,
            real_patients=[f"q{name}" for name in twice],
        )
    )
    # Each image twice is no more evidence: the interval is as wide.
    assert (double.high - double.low) / (single.high - single.low) == pytest.approx(1.0, abs=0.1)


def test_a_small_sample_is_warned_of() -> None:
    few, many = (
        frechet_metric(two_samples(normal(n, 12, seed=1), normal(50, 12, seed=2)), resamples=20)
        for n in (8, 50)
    )
    assert "only 8 images for 12 features: strongly biased upwards" in few.note
    assert "strongly" not in many.note
    assert "biased upwards by about" in many.note
    assert (many.name, many.judge, many.direction, many.n) == ("frechet_distance", "j", "lower", 50)


def test_the_extrapolated_distance_is_free_of_bias() -> None:
    # The truth is 10 · 0.3² = 0.9; at n = 60 the distance itself is about twice as large.
    plain, covered, extrapolated = [], 0, []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        ours, theirs = torch.randn(2, 60, 10, generator=random, dtype=DOUBLE)
        distance, unbiased = frechet_metrics(two_samples(ours + 0.3, theirs), resamples=60, seed=seed)
        plain.append(distance.value)
        extrapolated.append(unbiased.value)
        covered += unbiased.low <= 0.9 <= unbiased.high
    error = np.std(extrapolated) / 20**0.5
    assert np.mean(plain) > 0.9 + 5 * error
    assert abs(np.mean(extrapolated) - 0.9) < 3 * error
    assert covered >= 16  # 95 % of 20 is 19; the interval knows nothing of the draw of halves


def test_samples_too_small_for_their_features_are_not_extrapolated() -> None:
    samples = two_samples(normal(20, 12, seed=1), normal(20, 12, seed=2))
    _, unbiased = frechet_metrics(samples, resamples=20)
    assert math.isnan(unbiased.value)
    assert math.isnan(unbiased.low)
    assert unbiased.note.startswith("not known: halves of the samples have no more images than features")


def test_one_patient_has_no_interval() -> None:
    samples = two_samples(normal(20, 2, seed=1), normal(20, 2, seed=2), patients=["p"] * 20)
    metric = frechet_metric(samples, resamples=20)
    assert math.isnan(metric.low)
    assert math.isfinite(metric.value)


@pytest.mark.parametrize(
    ("ours", "theirs", "complaint"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), "have 2 features and real ones 4"),
        (torch.zeros(1, 2), torch.zeros(3, 2), "needs at least 2 images of each kind; there are 1 generated"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "generated: the features of 3 of 3 images"),
        (torch.zeros(3, 2), torch.zeros(3), r"real: features of shape \[3\]"),
    ],
)
def test_bad_features(ours: Tensor, theirs: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        frechet_distance(ours, theirs)


def test_patients_must_be_named() -> None:
    with pytest.raises(ValueError, match="3 real images but 2 patients"):
        two_samples(torch.zeros(3, 2), torch.zeros(3, 2), real_patients=people(2))
    with pytest.raises(ValueError, match="3 generated images but 4 patients"):
        two_samples(torch.zeros(3, 2), torch.zeros(3, 2), patients=people(4))
