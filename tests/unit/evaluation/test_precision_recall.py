from __future__ import annotations

import pytest
import torch
from torch import Tensor

from counterray.evaluation.precision_recall import manifold_scores, precision_recall_metrics
from tests.feature_samples import two_samples


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(n: int, *, seed: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * scale + mean


def test_points_on_a_line_by_hand() -> None:
    # Nearest neighbours (k = 1): real 0, 1, 3, 10 reach 1, 1, 2, 7; generated 0.5, 2.5, 30 reach 2, 2, 27.5.
    scores = manifold_scores(column(0.5, 2.5, 30.0), column(0.0, 1.0, 3.0, 10.0), neighbours=1)
    # 0.5 lies in the balls of 0 and 1; 2.5 in that of 3, and 7.5 from 10 it is outside; 30 in none.
    assert scores.precise.tolist() == [True, True, False]
    assert scores.density.tolist() == [2.0, 1.0, 0.0]
    # 0 and 1 are within 2 of 0.5, 3 within 2 of 2.5, 10 within 27.5 of 30.
    assert scores.recalled.tolist() == [True, True, True, True]
    # The ball of 10 reaches down to 3: it holds nothing generated.
    assert scores.covered.tolist() == [True, True, True, False]


def test_the_second_neighbour_counts_with_k_2() -> None:
    # Real 0, 1, 5 reach 5, 4, 5; the generated 9 is 4 from 5.
    scores = manifold_scores(column(9.0, 100.0, 101.0), column(0.0, 1.0, 5.0), neighbours=2)
    assert scores.precise.tolist() == [True, False, False]
    assert scores.density.tolist() == [0.5, 0.0, 0.0]


def test_samples_of_one_distribution_score_near_one() -> None:
    scores = manifold_scores(normal(300, seed=1), normal(300, seed=2))
    assert scores.precise.mean() > 0.9
    assert scores.recalled.mean() > 0.9
    assert scores.density.mean() == pytest.approx(1.0, abs=0.1)
    assert scores.covered.mean() > 0.9


def test_a_generator_of_one_kind_is_precise_and_covers_little() -> None:
    narrow = manifold_scores(normal(300, seed=1, scale=0.1), normal(300, seed=2))
    assert narrow.precise.mean() == 1.0
    assert narrow.recalled.mean() < 0.2
    assert narrow.covered.mean() < 0.3


def test_metrics_carry_interval_and_sizes() -> None:
    metrics = precision_recall_metrics(two_samples(normal(40, seed=1), normal(60, seed=2), subset="edema"))
    assert [metric.key for metric in metrics] == [
        f"{name}[edema]" for name in ("precision", "recall", "density", "coverage")
    ]
    assert [metric.n for metric in metrics] == [40, 60, 40, 60]
    assert all(metric.low <= metric.value <= metric.high for metric in metrics)
    assert all(metric.direction == "higher" and "k = 5" in metric.note for metric in metrics)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="k = 5 needs at least 6 images of each kind; there are 5 generated"):
        manifold_scores(normal(5, seed=1), normal(9, seed=2))
    with pytest.raises(ValueError, match=r"neighbours \(0\) must be 1 or more"):
        manifold_scores(normal(5, seed=1), normal(9, seed=2), neighbours=0)
