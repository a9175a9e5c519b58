"""What travels between the gateway, the replicas and the cache of noise."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from counterray.models.generator import Abduction, Edit
from serve.jury import Scores
from serve.schemas import MadeImage, Provenance


class Sealed:
    """An abduction on its way: who only hands it on, or keeps it, neither packs nor unpacks its tensors.

    Args:
        abduction: One row, on the CPU.
    """

    def __init__(self, abduction: Abduction) -> None:
        self.nbytes = abduction.nbytes
        """Memory of its tensors [bytes]."""
        self._content: Abduction | bytes = abduction

    def open(self) -> Abduction:
        """The abduction."""
        if isinstance(self._content, bytes):
            return cast(Abduction, pickle.loads(self._content))  # Packed below, and brought by Ray alone.
        return self._content

    def __getstate__(self) -> tuple[int, bytes]:
        there = self._content
        return self.nbytes, there if isinstance(there, bytes) else pickle.dumps(there)

    def __setstate__(self, state: tuple[int, bytes]) -> None:
        self.nbytes, self._content = state


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An image as its model keeps it.

    Attributes:
        abduction: What was abducted from it.
        image: The image as the model saw it, ``[H, W]``.
        inferred: What the judges read from it, where they were asked to.
        before: What the judges say of it.
        observed: What was known of it; ``None`` where the judges read that.
        sampling: Steps and guidance of the sampler that it was abducted for; ``None`` for the model's own.
    """

    abduction: Sealed
    image: NDArray[np.uint8]
    inferred: Mapping[str, float | str]
    before: Scores
    observed: Mapping[str, float | str] | None
    sampling: tuple[int | None, float | None]

    @property
    def nbytes(self) -> int:
        """Memory of its arrays [bytes]."""
        return self.abduction.nbytes + self.image.nbytes


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request of one model.

    Attributes:
        edit: What the image should show.
        seeds: A seed for each image.
        steps: Of the sampler; ``None`` for those of ``kept``, else the model's own.
        guidance: Its scale of guidance; ``None`` as for ``steps``.
        image: ``[S, S]`` at the model's size; ``None`` where the image is ``kept`` already.
        observed: What is known of ``image``; ``None`` where the judges are to read it.
        kept: What was abducted before.
        dicom: Whether each image is also wanted as a DICOM file.
    """

    edit: Edit
    seeds: tuple[int, ...]
    steps: int | None = None
    guidance: float | None = None
    image: NDArray[np.uint8] | None = None
    observed: Mapping[str, float | str] | None = None
    kept: Kept | None = None
    dicom: bool = False

    def __post_init__(self) -> None:
        if (self.image is None) == (self.kept is None):
            raise ValueError("A work is of an image, or of what was kept of one.")

    @property
    def sampling(self) -> tuple[int | None, float | None]:
        """Steps and guidance of the sampler; ``None`` for the model's own."""
        steps, guidance = (None, None) if self.kept is None else self.kept.sampling
        return (
            steps if self.steps is None else self.steps,
            guidance if self.guidance is None else self.guidance,
        )

    def renewed(self) -> Work:
        """The same work; from the image again where its noise was abducted for another sampler."""
        if self.kept is None or self.kept.sampling == self.sampling:
            return self
        steps, guidance = self.sampling
        kept = self.kept
        return replace(
            self, kept=None, image=kept.image, observed=kept.observed, steps=steps, guidance=guidance
        )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a work.

    Attributes:
        images: In the order of the seeds.
        input: The image as the model saw it, PNG in base64.
        kept: What was abducted, for another intervention.
        provenance: Where the images come from.
        seconds: Stage of the work to what its batch took for it [s].
        batch: Works that were computed together.
    """

    images: tuple[MadeImage, ...]
    input: str
    kept: Kept
    provenance: Provenance
    seconds: Mapping[str, float]
    batch: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """An image on its way.

    Attributes:
        seed: Its seed.
        step: Steps that are done.
        steps: Steps that there are.
        image: PNG in base64, marked as synthetic.
    """

    seed: int
    step: int
    steps: int
    image: str
