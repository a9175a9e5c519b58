"""The training split's first studies, for generators that take pathologies or references from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from counterray.data.batching import read_batches
from counterray.data.dataset import Dataset
from counterray.data.study import Batch


@dataclass(frozen=True)
class TrainingBatches:
    """The first studies of the training split, read anew whenever they are asked for."""

    dataset: Dataset
    studies: int

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        size = min(256, self.studies)
        for batch in read_batches(self.dataset, "train", batch_size=size, reports=True):
            yield batch.select(torch.arange(min(len(batch), self.studies - seen)))
            seen += len(batch)
            if seen >= self.studies:
                return
