"""Images of an ingested dataset, for trying a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterray.data.batching import read_batches
from counterray.data.dataset import open_dataset
from serve.pictures import given_picture
from serve.problems import ProblemError
from serve.schemas import Sample
from serve.settings import SampleSettings


@dataclass(frozen=True)
class Samples:
    """The samples of a server.

    Attributes:
        images: ``[H, W]`` each, in the order of their names: ``sample-1`` and so on.
    """

    images: tuple[NDArray[np.uint8], ...] = ()

    @classmethod
    def read(cls, settings: SampleSettings | None) -> Samples:
        """The first studies of a split; none where the server has no samples.

        Raises:
            StorageError: If they cannot be read.
        """
        if settings is None:
            return cls()
        dataset = open_dataset(settings.data)
        batch = next(read_batches(dataset, settings.split, batch_size=settings.count))
        grey = np.rint((batch.image[:, 0].double().numpy() + 1) * 127.5).astype(np.uint8)
        return cls(tuple(grey))

    def find(self, name: str) -> NDArray[np.uint8]:
        """The sample of a name.

        Raises:
            ProblemError: If there is none.
        """
        named = {f"sample-{number}": image for number, image in enumerate(self.images, start=1)}
        if name not in named:
            raise ProblemError("unknown-sample", f"There are {len(named)} samples, from sample-1 on.")
        return named[name]

    def anatomy(self, seed: int) -> NDArray[np.uint8]:
        """The sample on whose anatomy an image from text alone is drawn; it follows from the seed.

        Raises:
            ProblemError: If there is no sample.
        """
        if not self.images:
            raise ProblemError("unknown-sample", "This server has no samples to draw on.")
        return self.images[seed % len(self.images)]

    def listed(self) -> list[Sample]:
        """All of them."""
        return [
            Sample(name=f"sample-{number}", image=given_picture(image))
            for number, image in enumerate(self.images, start=1)
        ]
