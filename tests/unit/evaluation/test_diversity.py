from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterray.evaluation.diversity import diversity_metrics, feature_deviation, mean_pairwise_distance
from tests.feature_samples import two_samples


def normal(n: int, *, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_pairwise_distance_of_a_triangle() -> None:
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert mean_pairwise_distance(corners) == pytest.approx((3 + 4 + 5) / 3)


def test_feature_deviation_by_hand() -> None:
    # Variances 2² · 2 / 2 = 4 ... of (0, 2, 4): 4; of (1, 1, 1): 0. Deviations 2 and 0.
    assert feature_deviation(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])) == pytest.approx(1.0)


def test_images_that_are_all_one_have_no_diversity() -> None:
    assert mean_pairwise_distance(torch.ones(4, 3)) == 0.0
    assert feature_deviation(torch.ones(4, 3)) == 0.0


def test_half_the_spread_is_half_as_diverse() -> None:
    samples = two_samples(normal(80, seed=1, scale=0.5), normal(80, seed=2), subset="edema")
    metrics = {metric.key: metric for metric in diversity_metrics(samples)}
    assert set(metrics) == {
        "pairwise_distance[edema, generated]",
        "pairwise_distance[edema, real]",
        "pairwise_distance_ratio[edema]",
        "feature_deviation[edema, generated]",
        "feature_deviation[edema, real]",
        "feature_deviation_ratio[edema]",
    }
    for name in ("pairwise_distance_ratio[edema]", "feature_deviation_ratio[edema]"):
        ratio = metrics[name]
        assert ratio.value == pytest.approx(0.5, abs=0.06)
        assert 0.35 < ratio.low < ratio.value < ratio.high < 0.65
        assert ratio.direction == "higher"
    pair = metrics["pairwise_distance[edema, generated]"]
    assert pair.value == pytest.approx(mean_pairwise_distance(normal(80, seed=1, scale=0.5)))


def test_the_interval_is_not_pulled_down_by_images_drawn_twice() -> None:
    generated = diversity_metrics(two_samples(normal(8, seed=1), normal(8, seed=2)))[0]
    # A plain resample of 8 would on average lose an eighth of its pairs to distances of 0.
    assert abs((generated.low + generated.high) / 2 - generated.value) < generated.value / 8


def test_real_images_that_are_all_one_leave_no_ratio() -> None:
    metrics = diversity_metrics(two_samples(normal(4, seed=1), torch.ones(4, 4)))
    assert math.isnan(next(m for m in metrics if m.name == "pairwise_distance_ratio").value)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="needs at least 2 images; there is 1"):
        mean_pairwise_distance(torch.ones(1, 3))
    with pytest.raises(ValueError, match="2 generated and 1 real ones"):
        diversity_metrics(two_samples(torch.ones(2, 3), torch.ones(1, 3)))
