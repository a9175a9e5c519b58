"""Composition: an intervention that changes nothing must leave the image as it was."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor
from counterray.evaluation.pixel_error import mean_absolute_error


def composition(edit: Editor, batch: Batch, *, cycles: Sequence[int] = (1, 10)) -> dict[int, Tensor]:
    """Error after k null interventions in a row.

    ``mean |x - f^k(x)| / 2`` with ``f(x) = predict(abduct(x))``; 0 is best. One cycle is the reconstruction
    error; ten show whether errors add up.

    Args:
        edit: The generator.
        batch: B images.
        cycles: The k to report.

    Returns:
        k to ``[B]``, a share of the full grey range.

    Reference: Monteiro et al., 2023, https://arxiv.org/abs/2303.01274, section 3.1, definition 3.1 with the
        L1 distance.
    """
    image, errors = batch.image, {}
    for cycle in range(1, max(cycles) + 1):
        image = edit(image, batch, batch)
        if cycle in cycles:
            errors[cycle] = mean_absolute_error(image, batch.image)
    return errors
