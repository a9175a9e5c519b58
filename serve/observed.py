"""What is known of an uploaded image beside its pixels, as generators read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from counterray.data.study import Batch
from counterray.models.generator import PREFIX, Edit, EditError
from counterray.models.pathology_ldm.prompts import label_prompts

AGE = "age"
MOST_YEARS = 120.0


def check_observed(
    observed: Mapping[str, float | str], findings: Sequence[str], levels: Mapping[str, Sequence[str]]
) -> None:
    """Refuses what a model does not know.

    Args:
        observed: Findings to 0 or 1, attributes to a level by name or code, ``age`` in years.
        findings: Findings that the model knows.
        levels: Attributes that it knows, each with its levels in the order of their codes.

    Raises:
        EditError: With what there is.
    """
    for name, value in observed.items():
        if name == AGE:
            if isinstance(value, str) or not 0 <= value <= MOST_YEARS:
                raise EditError(f"observed {name}: ages are 0 to {MOST_YEARS:g} years.")
        elif name.startswith(PREFIX):
            if name.removeprefix(PREFIX) not in findings:
                there = ", ".join(findings) or "none"
                raise EditError(f"observed {name}: no such finding. There are: {there}.")
            if value not in (0.0, 1.0):
                raise EditError(f"observed {name}: findings are 0 or 1.")
        else:
            try:
                Edit(do={name: value}).codes(levels)
            except EditError as error:
                raise EditError(f"observed {str(error).removeprefix('do ')}") from None


def patients_of(
    images: Sequence[NDArray[np.uint8]],
    observed: Sequence[Mapping[str, float | str]],
    *,
    findings: Sequence[str],
    levels: Mapping[str, Sequence[str]],
) -> Batch:
    """Images ``[H, W]`` with what is known of them, as a batch; what is not known is NaN.

    The labels stand in for the report that an uploaded image does not have.
    """
    count = len(images)
    values = torch.full((count, len(findings)), torch.nan)
    attributes = {name: torch.full((count,), torch.nan) for name in (AGE, *levels)}
    for row, known in enumerate(observed):
        for name, value in known.items():
            if name == AGE:
                attributes[AGE][row] = float(value)
            elif name.startswith(PREFIX):
                values[row, list(findings).index(name.removeprefix(PREFIX))] = float(value)
            else:
                attributes[name][row] = Edit(do={name: value}).codes(levels)[name]
    mask = ~values.isnan()
    prompts = tuple(label_prompts(values.nan_to_num(0.0), mask, findings))
    return Batch(
        image=torch.from_numpy(np.stack(images)).unsqueeze(1).float() / 127.5 - 1.0,
        attributes=attributes,
        findings=values.nan_to_num(0.0),
        finding_mask=mask,
        finding_names=tuple(findings),
        reports=prompts,
        prompts=prompts,
        image_ids=tuple(str(row) for row in range(count)),
        patient_ids=tuple(str(row) for row in range(count)),
    )
