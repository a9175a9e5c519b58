"""NIQE: how natural an image's local statistics are, without any reference image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from scipy.ndimage import correlate1d
from scipy.special import gamma
from torch import Tensor

from counterray.evaluation.intervals import Floats, summarise
from counterray.evaluation.metric import Metric

PATCH = 96
"""Edge of a patch at the finer scale [px]: what the published model was fitted with."""

SMALLEST = 2 * PATCH
"""Least height and width [px], two patches along each edge: a covariance of patches is needed."""

_SHAPES = np.arange(0.2, 10.001, 0.001)
_SHAPE_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


def niqe(image: Tensor) -> Tensor:
    """Naturalness image quality evaluator: distance of an image's patch statistics from natural images'.

    ``√((ν - ν₀)ᵀ ((Σ + Σ₀) / 2)⁺ (ν - ν₀))``, with mean ν and covariance Σ of 36 features of the image's
    patches of 96 × 96 px, and ν₀, Σ₀ of sharp photographs, as published. Lower is more natural; good
    photographs have about 2 to 5. Radiographs are no photographs: compare a generated set's value with the
    real set's, not with 0.

    All patches count, as in the published code for test images. Images are never enlarged for it: the
    statistics of enlarged pixels are those of the interpolation.

    Args:
        image: ``[B, 1, H, W]`` in [-1, 1], H and W at least 192 px. What is beyond a multiple of 96 px at
            the lower and right edges is left out.

    Returns:
        ``[B]`` in float64; NaN where fewer than two patches have the statistics, as in a blank image.

    Raises:
        ValueError: If images are smaller, not of one channel, or not finite.

    Reference: Mittal et al., 2013, https://doi.org/10.1109/LSP.2012.2227726, equation 10; parameters and
        details (borders, resizing) from the authors' NIQE software release, 2012.
    """
    if image.ndim != 4 or image.shape[1] != 1:
        raise ValueError(f"NIQE takes grey images [B, 1, H, W]; these have shape {list(image.shape)}.")
    if min(image.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"NIQE needs images of at least {SMALLEST} × {SMALLEST} px, two patches of its published model "
            f"along each edge; these have {image.shape[-2]} × {image.shape[-1]}. Enlarging them would "
            "measure the interpolation: train at a larger image size or leave NIQE out."
        )
    if not image.isfinite().all():
        wrong = int((~image.isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"NIQE: {wrong} of {len(image)} images are not finite.")
    # The published model is of grey values from 0 to 255.
    grey = ((image[:, 0].detach().double().cpu() + 1) * 127.5).numpy()
    return torch.tensor([_distance(picture) for picture in grey], dtype=torch.float64)


def niqe_metric(image: Tensor, *, patients: Sequence[str], subset: str = "", seed: int = 0) -> Metric:
    """Mean NIQE of images, with an interval over patients.

    Args:
        image: ``[n, 1, H, W]`` in [-1, 1], see `niqe`.
        patients: Whose images the n ones are, or were made from.
        subset: What the number is restricted to, such as ``real``.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `niqe`, or if images do not each name a patient.
    """
    return summarise(
        "niqe",
        niqe(image),
        patients=patients,
        direction="lower",
        subset=subset,
        note="against natural photographs; compare with real radiographs",
        seed=seed,
    )


def _distance(grey: Floats) -> float:
    rows, columns = (size // PATCH for size in grey.shape)
    fine = grey[: rows * PATCH, : columns * PATCH]
    features = np.hstack(
        [
            _patch_features(_normalised(scaled), patch)
            for scaled, patch in ((fine, PATCH), (_halved(_halved(fine).T).T, PATCH // 2))
        ]
    )
    complete = features[~np.isnan(features).any(axis=1)]
    if len(complete) < 2:
        return float("nan")
    # The published code takes each feature's mean over all patches that have it, the covariance over those
    # that have all.
    mean, covariance = _natural()
    difference = np.nanmean(features, axis=0) - mean
    pooled = (covariance + np.cov(complete, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def _normalised(grey: Floats) -> Floats:
    """Grey values less their local mean, over their local deviation plus 1: equations 1 to 3."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def smooth(values: Floats) -> Floats:
        blurred: Floats = correlate1d(
            correlate1d(values, window, axis=0, mode="nearest"), window, axis=1, mode="nearest"
        )
        return blurred

    mean = smooth(grey)
    deviation = np.sqrt(np.abs(smooth(grey**2) - mean**2))
    normalised: Floats = (grey - mean) / (deviation + 1)
    return normalised


def _halved(grey: Floats) -> Floats:
    """Half the rows, by the bicubic kernel widened to the new pixels, the border mirrored, as in MATLAB."""
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, far)
    weights /= weights.sum()
    padded = np.pad(grey, ((3, 3), (0, 0)), mode="symmetric")
    rows = len(grey) // 2
    halved: Floats = sum(
        (weight * padded[first : first + 2 * rows : 2] for first, weight in enumerate(weights)),
        start=np.zeros((rows, grey.shape[1])),
    )
    return halved


def _patch_features(normalised: Floats, patch: int) -> Floats:
    """18 features of each patch, ``[patches, 18]``."""
    rows, columns = (size // patch for size in normalised.shape)
    return np.array(
        [
            _features(normalised[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch])
            for row in range(rows)
            for column in range(columns)
        ]
    )


def _features(patch: Floats) -> list[float]:
    """Shape and mean scale of the values; shape, mean and both scales of products of neighbours."""
    shape, left, right = _asymmetric_gaussian(patch)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _asymmetric_gaussian(patch * np.roll(patch, shift, axis=(0, 1)))
        mean = (right - left) * float(gamma(2 / shape) / gamma(1 / shape))
        features += [shape, mean, left, right]
    return features


def _asymmetric_gaussian(values: Floats) -> tuple[float, float, float]:
    """Shape and both scales of the asymmetric generalised Gaussian of the values' moments; NaN if one-sided.

    Reference: Lasmar et al., 2009, https://doi.org/10.1109/ICIP.2009.5414038, as NIQE's equations 6 to 8.
    """
    below, above = values[values < 0], values[values > 0]
    if not len(below) or not len(above):
        return (np.nan, np.nan, np.nan)
    left, right = float(np.sqrt(np.mean(below**2))), float(np.sqrt(np.mean(above**2)))
    skew = left / right
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_SHAPE_RATIOS - ratio) ** 2)])
    scale = float(np.sqrt(gamma(1 / shape) / gamma(3 / shape)))
    return shape, left * scale, right * scale


@cache
def _natural() -> tuple[Floats, Floats]:
    """Mean ``[36]`` and covariance ``[36, 36]`` of natural images' features, as published."""
    parameters = json.loads((files("counterray.evaluation") / "niqe_parameters.json").read_text("utf-8"))
    return np.array(parameters["mean"]), np.array(parameters["covariance"])
