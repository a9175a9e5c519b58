from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from counterray.evaluation.kernel_distance import kernel_distance, kernel_metric
from tests.feature_samples import two_samples

DOUBLE = torch.float64


def normal(n: int, *, seed: int, mean: float = 0.0, width: int = 12) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + mean


class Flat(nn.Module):
    """A feature extractor for torchmetrics: the pixels themselves."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def test_one_feature_by_hand() -> None:
    # k(0, 1) = 1, k(1, 2) = 27; across: k(0, 1) = 1, k(0, 2) = 1, k(1, 1) = 8, k(1, 2) = 27.
    value = kernel_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
    assert value == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_it_agrees_with_an_independent_computation() -> None:
    ours, theirs = normal(9, seed=1, mean=0.5), normal(7, seed=2)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 12 + 1) ** 3)

    def within(sample: Tensor) -> float:
        pairs = list(itertools.permutations(sample, 2))
        return sum(kernel(x, y) for x, y in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in ours for y in theirs) / (9 * 7)
    assert abs(kernel_distance(ours, theirs) - (within(ours) + within(theirs) - 2 * across)) < 1e-10


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save all:UserWarning")
def test_it_agrees_with_torchmetrics() -> None:
    ours, theirs = normal(80, seed=1, mean=0.4), normal(80, seed=2)
    reference = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=80, normalize=True)
    reference.set_dtype(DOUBLE)
    reference.update(ours.reshape(-1, 3, 2, 2), real=False)
    reference.update(theirs.reshape(-1, 3, 2, 2), real=True)
    mean, _ = reference.compute()
    assert abs(kernel_distance(ours, theirs) - float(mean)) < 1e-4


def test_it_is_unbiased_whatever_the_sample() -> None:
    same = [kernel_distance(normal(6, seed=s), normal(6, seed=s + 500)) for s in range(300)]
    values = torch.tensor(same)
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert 0.3 < (values < 0).float().mean() < 0.8


def test_the_interval_holds_the_truth_of_equal_distributions() -> None:
    covered = 0
    for seed in range(20):
        samples = two_samples(normal(30, seed=seed, width=4), normal(30, seed=seed + 100, width=4))
        metric = kernel_metric(samples, seed=seed)
        covered += metric.low <= 0 <= metric.high
        assert metric.low < metric.value < metric.high
    assert covered >= 17  # 95 % of 20 is 19


def test_the_metric_says_what_it_is() -> None:
    metric = kernel_metric(two_samples(normal(10, seed=1), normal(20, seed=2), subset="edema"))
    assert metric.key == "kernel_distance[edema]"
    assert (metric.n, metric.direction, metric.judge) == (10, "lower", "j")
    assert "10 generated against 20 real images, 12 features" in metric.note


def test_bad_features() -> None:
    with pytest.raises(ValueError, match="needs at least 2 images of each kind"):
        kernel_distance(torch.zeros(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="have 2 features and real ones 3"):
        kernel_distance(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="needs at least 2 images of each kind"):
        kernel_metric(two_samples(torch.zeros(1, 2), torch.zeros(2, 2)))
