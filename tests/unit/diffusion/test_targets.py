"""Targets and distances by hand."""

import pytest
import torch

from counterray.diffusion.targets import target_distance, targets_for, typical_spread

REFERENCES = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 6.0]])
SEEDS = torch.arange(60)


def test_centroid():
    found = targets_for(REFERENCES, "centroid", seeds=SEEDS[:2])
    assert found.tolist() == [[1.0, 2.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("choice", "possible"),
    [
        ("reference", [[0.0, 0.0], [3.0, 0.0], [0.0, 6.0]]),
        ("leave_one_out", [[1.5, 3.0], [0.0, 3.0], [1.5, 0.0]]),
    ],
)
def test_targets_drawn_by_seed(choice, possible):
    found = targets_for(REFERENCES, choice, seeds=SEEDS)
    counts = [sum(row == option for row in found.tolist()) for option in possible]
    assert sum(counts) == 60
    assert min(counts) >= 10
    assert torch.equal(targets_for(REFERENCES, choice, seeds=SEEDS[30:31]), found[30:31])


def test_distance():
    found = target_distance(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert found.tolist() == [5.0, 0.0]


def test_spread_is_the_mean_squared_distance_of_pairs():
    assert typical_spread(REFERENCES).item() == pytest.approx((9 + 36 + 45) / 3)


def test_too_few_references():
    with pytest.raises(ValueError, match=r"leave_one_out needs 2 or more .* got \[1, 2\]"):
        targets_for(REFERENCES[:1], "leave_one_out", seeds=SEEDS)
    with pytest.raises(ValueError, match=r"reference needs 1 or more .* got \[0, 2\]"):
        targets_for(REFERENCES[:0], "reference", seeds=SEEDS)
    with pytest.raises(ValueError, match="spread of 2 or more"):
        typical_spread(REFERENCES[:1])
