"""Edits of a batch of which some rows may be impossible: what can be made is made, the rest is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.models.generator import Edit, Generator, NoMatchError, shows_already

MOST_DETAIL = 300
"""Characters kept of why a row could not be edited."""


@dataclass(frozen=True)
class Refusal:
    """Why one image could not be made.

    Attributes:
        reason: ``unchanged`` where the image shows already what is asked for, ``no_match`` where the
            generator could not make this edit of this image, ``not_finite`` where it made no image.
        detail: What it said, without identifiers.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Edited:
    """B edits.

    Attributes:
        image: ``[B, 1, H, W]`` in [-1, 1]; NaN in the rows that were refused.
        refusals: Row to why it was refused.
    """

    image: Tensor
    refusals: dict[int, Refusal] = field(default_factory=dict)


def edit_rows(
    generator: Generator,
    batch: Batch,
    edit: Edit,
    *,
    seeds: Tensor,
    donor: Batch | None = None,
    batch_size: int,
) -> Edited:
    """Edits of all rows, ``batch_size`` of them at a time.

    Args:
        generator: Makes the edits.
        batch: The studies, B of them.
        edit: What is asked for.
        seeds: ``[B]`` long.
        donor: Whose pathology each row takes, where the edit is by donors.
        batch_size: Images at a time at most; the pieces are of nearly equal size.

    Raises:
        EditError: If the generator makes no such edits at all.
    """
    images: list[Tensor] = []
    refusals: dict[int, Refusal] = {}
    for rows in np.array_split(np.arange(len(batch)), -(-len(batch) // batch_size)):
        _edit_piece(generator, batch, edit, torch.from_numpy(rows), seeds, donor, images, refusals)
    image = torch.cat(images)
    finite = image.isfinite().flatten(1).all(dim=1)
    for row in (~finite).nonzero().flatten().tolist():
        refusals.setdefault(row, Refusal("not_finite", "the generator made values that are not finite"))
    if donor is None:
        # It would be the patient's own image, under the name of a synthetic one.
        shown = shows_already(batch, edit, generator.levels, generator.ranges)
        for row in shown.nonzero().flatten().tolist():
            refusals.setdefault(row, Refusal("unchanged", "the image shows already what is asked for"))
    return Edited(image, dict(sorted(refusals.items())))


def _edit_piece(
    generator: Generator,
    batch: Batch,
    edit: Edit,
    rows: Tensor,
    seeds: Tensor,
    donor: Batch | None,
    images: list[Tensor],
    refusals: dict[int, Refusal],
) -> None:
    """Appends the images of ``rows``; where some row cannot be edited, finds it by halving."""
    part = batch.select(rows)
    try:
        made = generator.edit(
            part, edit, seeds=seeds[rows], donor=None if donor is None else donor.select(rows)
        )
    except NoMatchError as error:
        if len(rows) == 1:
            refusals[int(rows)] = Refusal("no_match", str(error)[:MOST_DETAIL])
            images.append(torch.full_like(part.image, torch.nan).cpu())
            return
        for half in rows.chunk(2):
            _edit_piece(generator, batch, edit, half, seeds, donor, images, refusals)
        return
    images.append(made.detach().float().cpu())
