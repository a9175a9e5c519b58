"""Two samples of features whose images are of patients of their own, as tests of distances need them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from counterray.evaluation.two_sample import TwoSamples


def people(count: int, name: str = "p") -> list[str]:
    """Names of ``count`` patients."""
    return [f"{name}{row}" for row in range(count)]


def two_samples(
    generated: Tensor,
    real: Tensor,
    *,
    patients: Sequence[str] | None = None,
    real_patients: Sequence[str] | None = None,
    judge: str = "j",
    subset: str = "",
) -> TwoSamples:
    """The samples; each image is of a patient of its own where none are named."""
    return TwoSamples(
        generated=generated,
        real=real,
        patients=people(len(generated)) if patients is None else patients,
        real_patients=people(len(real), "q") if real_patients is None else real_patients,
        judge=judge,
        subset=subset,
    )
