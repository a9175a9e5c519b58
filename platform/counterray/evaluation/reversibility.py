"""Reversibility: do, then undo, must give back the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor
from counterray.evaluation.pixel_error import mean_absolute_error


def reversibility(
    edit: Editor, source: Batch, donor: Batch, *, cycles: Sequence[int] = (1, 10)
) -> dict[int, Tensor]:
    """Error after k times doing and undoing, ``mean |x - (undo ∘ do)^k(x)| / 2``; 0 is best.

    Args:
        edit: The generator.
        source: B images.
        donor: What the images are set to before they are set back.
        cycles: The k to report.

    Returns:
        k to ``[B]``, a share of the full grey range.

    Reference: Monteiro et al., 2023, https://arxiv.org/abs/2303.01274, section 3.2, with the L1 distance.
    """
    image, errors = source.image, {}
    for cycle in range(1, max(cycles) + 1):
        image = edit(edit(image, source, donor), donor, source)
        if cycle in cycles:
            errors[cycle] = mean_absolute_error(image, source.image)
    return errors
