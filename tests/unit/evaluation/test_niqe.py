from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from counterray.evaluation.niqe import niqe, niqe_metric

PICTURES = Path(sklearn.datasets.__file__).parent / "images"
PUBLISHED = {
    ("china.jpg", "sharp"): 4.2132,
    ("china.jpg", "noisy"): 9.5392,
    ("china.jpg", "blurred"): 7.9036,
    ("flower.jpg", "sharp"): 4.8197,
    ("flower.jpg", "noisy"): 11.7919,
    ("flower.jpg", "blurred"): 9.1217,
}
"""What basicsr 1.4.2 gives for scikit-learn's photographs in grey, noisy (σ = 20) or blurred (σ = 2 px).

Its authors report the value of the original MATLAB release, 5.7296, for their test picture.
"""


def photograph(name: str, kind: str = "sharp") -> Tensor:
    grey = np.asarray(Image.open(PICTURES / name).convert("L"))
    if kind == "noisy":
        grey = np.clip(grey + np.random.default_rng(0).normal(0, 20, grey.shape), 0, 255)
    if kind == "blurred":
        grey = gaussian_filter(grey.astype(float), 2)
    return torch.from_numpy(grey / 127.5 - 1)[None, None]


@pytest.mark.parametrize(("name", "kind"), PUBLISHED)
def test_it_agrees_with_the_published_implementation(name: str, kind: str) -> None:
    assert niqe(photograph(name, kind)).item() == pytest.approx(PUBLISHED[name, kind], rel=1e-3)


def test_what_is_beyond_whole_patches_does_not_count() -> None:
    image = photograph("china.jpg")
    assert torch.equal(niqe(image), niqe(image[..., :384, :576]))
    assert not torch.equal(niqe(image), niqe(image[..., :288, :576]))


def test_patches_without_statistics_are_left_out() -> None:
    image = photograph("china.jpg")
    framed = image.clone()
    framed[..., :96] = -1.0  # a black border, as collimated radiographs have
    assert math.isfinite(niqe(framed).item())


def test_a_blank_image_has_no_value() -> None:
    values = niqe(torch.cat([photograph("china.jpg"), torch.zeros(1, 1, 427, 640)]))
    assert values[0] == pytest.approx(4.2132, rel=1e-4)
    assert math.isnan(values[1])


def test_metric_leaves_out_what_has_no_value() -> None:
    images = torch.cat([photograph("china.jpg"), photograph("flower.jpg"), torch.zeros(1, 1, 427, 640)])
    metric = niqe_metric(images, patients=["a", "b", "c"], subset="real")
    assert metric.value == pytest.approx((4.2132 + 4.8197) / 2, rel=1e-4)
    assert (metric.key, metric.n, metric.direction, metric.judge) == ("niqe[real]", 2, "lower", None)
    assert metric.note.endswith("1 of 3 images have no value")


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (torch.zeros(1, 1, 64, 64), "at least 192 × 192 px, .* these have 64 × 64. Enlarging"),
        (torch.zeros(1, 1, 400, 191), "these have 400 × 191"),
        (torch.zeros(1, 3, 200, 200), r"grey images .* shape \[1, 3, 200, 200\]"),
        (torch.full((2, 1, 192, 192), math.nan), "2 of 2 images are not finite"),
    ],
)
def test_bad_images(image: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        niqe(image)
