"""The phantom as a source: nothing is read, the workers draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.pixels import Fit, Rejection
from counterray.data.sources.base import UNASSIGNED, Listing, Source, record_table
from counterray.data.study import Study
from counterray.storage import Location


class Phantom(Source):
    """Chest radiographs drawn from a known causal model; the root is not used."""

    name: Literal["phantom"] = "phantom"
    """The source's name."""
    studies: int = Field(default=4000, ge=1)
    """Number of studies; 1.7 to a patient on average."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of the dataset: another seed, other patients."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = VOCABULARY
    image_sizes: ClassVar[tuple[int, int]] = (32, 512)

    def listing(self, root: Location) -> Listing:
        """Numbers the studies; whose they are is drawn by the workers; see `Source.listing`."""
        numbers = range(self.studies)
        records = record_table(
            {
                "image_id": [f"{number:09d}" for number in numbers],
                "patient_id": [UNASSIGNED] * len(numbers),
                "index": numbers,
            }
        )
        return Listing(records=records)

    def read(
        self, root: Location, records: Sequence[Mapping[str, Any]], *, size: int, fit: Fit
    ) -> Iterator[Study | Rejection]:
        """Draws the studies of consecutive records; see `Source.read`."""
        config = PhantomConfig(studies=self.studies, image_size=size, seed=self.seed)
        drawn = draw_rows(config, records[0]["index"], records[-1]["index"] + 1)
        for record, study in zip(records, drawn, strict=True):
            yield replace(study, split=record["split"], source=self.name)
