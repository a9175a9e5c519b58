from __future__ import annotations

import pytest
import torch
from torch import Tensor

from counterray.evaluation.features import LayerJudge
from counterray.evaluation.perceptual import perceptual_distance


def judge(*layers: Tensor) -> LayerJudge:
    """Answers with one pair of channel vectors for a black and another for a white image."""
    return LayerJudge(
        name="two-tone",
        checksum="0123456789",
        layers=lambda image: [layer[(image[:, 0, 0, 0] > 0).long()] for layer in layers],
    )


BLACK, WHITE = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0)


def test_one_position_by_hand() -> None:
    # (3, 4) and (0, 2) are (0.6, 0.8) and (0, 1) at unit length: 0.36 + 0.04.
    layer = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[:, :, None, None]
    assert perceptual_distance(BLACK, WHITE, judge(layer)).tolist() == pytest.approx([0.4])


def test_positions_are_averaged_and_layers_added() -> None:
    # Two positions: opposite (4) and equal (0), mean 2; the second layer is at a right angle: 2.
    first = torch.tensor([[[1.0, 5.0], [0.0, 0.0]], [[-3.0, 1.0], [0.0, 0.0]]]).reshape(2, 2, 1, 2)
    second = torch.tensor([[1.0, 0.0], [0.0, 7.0]]).reshape(2, 2, 1, 1)
    assert perceptual_distance(BLACK, WHITE, judge(first, second)).tolist() == pytest.approx([4.0])


def test_a_silent_position_is_no_difference_to_another() -> None:
    layer = torch.zeros(2, 3, 1, 1)
    assert perceptual_distance(BLACK, WHITE, judge(layer)).tolist() == [0.0]


def test_scale_of_the_response_does_not_count() -> None:
    layer = torch.tensor([[1.0, 2.0], [10.0, 20.0]])[:, :, None, None]
    assert perceptual_distance(BLACK, WHITE, judge(layer)).item() == pytest.approx(0.0, abs=1e-12)


def test_it_does_not_depend_on_the_batch() -> None:
    layer = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[:, :, None, None]
    image, reference = torch.cat([BLACK, WHITE, BLACK]), torch.cat([WHITE, WHITE, BLACK])
    whole = perceptual_distance(image, reference, judge(layer))
    assert whole.tolist() == pytest.approx([0.4, 0.0, 0.0])
    assert torch.equal(whole, perceptual_distance(image, reference, judge(layer), batch_size=1))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\) cannot be compared with \(1, 1, 3, 3\)"):
        perceptual_distance(BLACK, torch.zeros(1, 1, 3, 3), judge(torch.ones(2, 2, 1, 1)))
    with pytest.raises(ValueError, match="two-tone:01234567: layers of 1 of 1 images are not finite"):
        perceptual_distance(BLACK, WHITE, judge(torch.full((2, 2, 1, 1), float("nan"))))
