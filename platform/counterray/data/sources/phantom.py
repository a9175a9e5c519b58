"""The phantom as a source: nothing is read, the workers draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from counterray.data.pixels import Fit, Rejection
from counterray.data.sources.base import Listing, Source, record_table
from counterray.data.study import Study
from counterray.storage import Location


class Phantom(Source):
    """Chest radiographs drawn from a known causal model; the root is not used."""

    name: Literal["phantom"] = "phantom"
    """The source's name."""
    studies: int = 5000
    """Number of studies."""
    seed: int = 0
    """Seed of the drawing."""

    def listing(self, root: Location) -> Listing:
        """Numbers the studies; see `Source.listing`."""
        numbers = range(self.studies)
        identifiers = [f"{number:09d}" for number in numbers]
        return Listing(
            records=record_table({"image_id": identifiers, "patient_id": identifiers, "index": numbers})
        )

    def read(
        self, root: Location, records: Sequence[Mapping[str, Any]], *, size: int, fit: Fit
    ) -> Iterator[Study | Rejection]:
        """Draws the studies of consecutive records; see `Source.read`."""
        from counterray.data.phantom.studies import PhantomConfig, draw_rows

        config = PhantomConfig(studies=self.studies, image_size=size, seed=self.seed)
        drawn = draw_rows(config, records[0]["index"], records[-1]["index"] + 1)
        for record, study in zip(records, drawn, strict=True):
            yield replace(study, split=record["split"], source=self.name)
