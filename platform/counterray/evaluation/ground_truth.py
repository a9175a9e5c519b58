"""Ground truth: the distance to the exact counterfactual, and what cheap answers would have scored."""

from __future__ import annotations

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Counterfactuals, patients, pieces
from counterray.evaluation.intervals import summarise
from counterray.evaluation.metric import Direction, Metric
from counterray.evaluation.pixel_error import mean_absolute_error

VISIBLE = 0.04
"""Difference of grey values in [-1, 1] from which a pixel counts as changed: five of 256 grey levels."""


def nearest_with_findings(source: Batch, target: Batch, pool: Batch) -> Tensor:
    """For each source, the most similar real image that has the target findings.

    The baseline of a retrieval system: candidates are the pool's images with the fewest labels that differ
    from the target (none, where the pool has that combination); of these, the nearest in pixels is taken.

    Args:
        source: B images.
        target: B rows whose findings are asked for.
        pool: Real images to choose from, such as the training split.

    Returns:
        Row numbers ``[B]`` in the pool.

    Raises:
        ValueError: If the pool is empty.
    """
    if not len(pool):
        raise ValueError("The pool of training images is empty; the nearest-image baseline needs some.")
    flat = pool.image.flatten(1)
    chosen = []
    for rows in pieces(len(source), 256):
        wanted, known = target.findings[rows] > 0.5, target.finding_mask[rows].bool()
        differs = (wanted[:, None] != (pool.findings > 0.5)) | ~pool.finding_mask.bool()
        mismatches = (differs & known[:, None]).sum(dim=2)
        candidate = mismatches == mismatches.amin(dim=1, keepdim=True)
        distance = torch.cdist(source.image[rows].flatten(1), flat)
        chosen.append(distance.masked_fill(~candidate, torch.inf).argmin(dim=1))
    return torch.cat(chosen)


def ground_truth_metrics(
    counterfactuals: Counterfactuals, exact: Tensor, *, pool: Batch | None = None, seed: int = 0
) -> list[Metric]:
    """Mean absolute error against the exact counterfactuals, of the generator and of two baselines.

    ``ground_truth_error`` counts all pixels, ``ground_truth_error_where_changed`` only those that the
    exact edit changes visibly: most pixels should not change, so doing nothing is hard to beat on the first.
    Both are shares of the full grey range; 0 is best.

    Args:
        counterfactuals: What is evaluated.
        exact: The exact counterfactuals, ``[B, 1, H, W]`` in [-1, 1].
        pool: Real training images for the baseline "nearest image with the target findings".
        seed: Of the bootstrap.
    """
    source = counterfactuals.source
    answers = {"": counterfactuals.image, "no edit": source.image}
    if pool is not None:
        nearest = nearest_with_findings(source, counterfactuals.donor, pool)
        answers["nearest training image"] = pool.image[nearest]
    changed = (exact - source.image).abs() > VISIBLE
    regions = {"ground_truth_error": None, "ground_truth_error_where_changed": changed}
    return [
        summarise(
            name,
            mean_absolute_error(image, exact, region=region),
            patients=patients(source),
            direction=_direction(baseline),
            subset=baseline,
            unit="of grey range",
            note="baseline" if baseline else "",
            seed=seed,
        )
        for name, region in regions.items()
        for baseline, image in answers.items()
    ]


def _direction(baseline: str) -> Direction:
    return "none" if baseline else "lower"
