"""Counterfactuals of a chunk: made once, kept in storage, read by every classifier and judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterray import __version__
from counterray.audits.classifiers.endpoint import png
from counterray.bundle import Bundle
from counterray.data.dataset import Dataset
from counterray.data.dicom import decode_any
from counterray.data.study import ATTRIBUTES, Batch
from counterray.evaluation.exact_generator import ExactGenerator
from counterray.evaluation.metric import UnscorableError
from counterray.models.generator import Edit, Generator, image_seed
from counterray.storage import Location
from jobs.auditing.representation import keep_representation
from jobs.auditing.request import EXACT, AuditJobConfig
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.generation.chunks import opened, parquet, read_parquet
from jobs.generation.editing import edit_rows
from jobs.generation.request import GenerationError, parents_of
from jobs.generation.selection import read_batch

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("made", pa.bool_(), nullable=False),
        pa.field("image", pa.binary()),
    ]
)
"""An image of 8 bits (PNG) of a study and view; null where the generator made none."""


@dataclass
class Source:
    """The generator of an audit; opens it in the process that first makes a chunk.

    Attributes:
        bundle: The generator's, or ``None`` for the exact one.
        dataset: Of the studies.
        config: How it generates.
        cache: Folder of what is made.
    """

    bundle: Bundle | None
    dataset: Dataset
    config: AuditJobConfig
    cache: Location
    _generator: Generator | None = field(default=None, init=False, repr=False)

    def open(self) -> Generator:
        """The generator.

        Raises:
            GenerationError: If the bundle is no generator, does not fit the data, or cannot tell total
                effects.
        """
        if self._generator is None:
            self._generator = self._opened()
        return self._generator

    def _opened(self) -> Generator:
        if self.bundle is not None:
            if self.config.effect == "total":
                raise GenerationError(
                    f"effect = total: the generator {self.bundle.location.uri} holds findings and other "
                    "attributes, as no causal model of them is known. Set effect=direct, or audit phantom "
                    f"data with --generator {EXACT}."
                )
            return opened(self.bundle, self.dataset, _Settings(self.config))
        try:
            return ExactGenerator(self.dataset.manifest, effect=self.config.effect)
        except UnscorableError as error:
            raise GenerationError(f"--generator {EXACT}: {error}") from error

    def identity(self) -> dict[str, Any]:
        """All that decides what it makes of an image and a seed, as plain JSON."""
        said: dict[str, Any] = {"stage": EXACT, "effect": self.config.effect}
        if self.bundle is not None:
            said = {"stage": self.bundle.stage, "checksum": self.bundle.checksum}
            said |= {"parents": parents_of(self.bundle), "settings": self.config.generator}
        device = "cuda" if self.config.resources.gpus_per_worker else "cpu"
        return {"generator": said, "software": __version__, "device": device}

    def nulls(self) -> int:
        """Null interventions on each study: one where a seed changes nothing."""
        return self.config.null_interventions if self.open().seeded else 1

    def place(self, chunk: SetChunk) -> Location:
        """Where a chunk's images are kept."""
        return self.cache / f"images/{chunk.name}.parquet"

    def make(self, chunk: SetChunk) -> int:
        """Makes and keeps a chunk's images; returns how many there are."""
        batch, views = read_batch(self.dataset, chunk.studies), chunk.views
        images = {
            view: self._edited(batch, views.attribute, value, sample=0)
            for view, value in views.settings.items()
        }
        own = self.own_settings(batch, views.attribute)
        for view, sample in views.nulled.items():
            made = torch.empty_like(batch.image)
            for value in np.unique(own).tolist():
                there = torch.from_numpy(np.flatnonzero(own == value))
                made[there] = self._edited(batch.select(there), views.attribute, value, sample=sample)
            images[view] = made
        keep_representation(self.open(), chunk, batch.image, self.cache)
        numbers = chunk.studies["number"].to_pylist()
        rows = [
            _row(number, view, image)
            for view, made in images.items()
            for number, image in zip(numbers, made, strict=True)
        ]
        self.place(chunk).write_bytes(parquet(pa.Table.from_pylist(rows, IMAGE_SCHEMA)))
        return sum(row["made"] for row in rows)

    def own_settings(self, batch: Batch, attribute: str) -> NDArray[Any]:
        """``[N]`` the level that each study has, by name, or its dose."""
        own = batch.attributes[attribute]
        if ATTRIBUTES[attribute] == "continuous":
            return np.array(own.tolist())
        vocabulary = self.dataset.manifest.vocabulary[attribute]
        return np.array([vocabulary[code] for code in own.long().tolist()])

    def _edited(self, batch: Batch, attribute: str, value: str | float, *, sample: int) -> Tensor:
        """Images with the attribute set; also where it is set to what it is: the same path for all."""
        generator = self.open()
        seeds = torch.tensor([image_seed(self.config.seed, image_id, sample) for image_id in batch.image_ids])
        edited = edit_rows(
            generator,
            batch,
            Edit(do={attribute: value}),
            seeds=seeds,
            batch_size=self.config.batch_size,
        )
        return edited.image

    def read(self, chunk: SetChunk) -> dict[str, Tensor]:
        """View to images ``[N, 1, H, W]`` in [-1, 1]; NaN where there is none."""
        if not chunk.views.attribute:
            return {"observed": read_batch(self.dataset, chunk.studies).image}
        table = read_parquet(self.place(chunk), IMAGE_SCHEMA)
        size, count = self.dataset.manifest.image_size, len(chunk.studies)
        images = torch.full((len(chunk.views.names), count, 1, size, size), torch.nan)
        row_of = {number: row for row, number in enumerate(chunk.studies["number"].to_pylist())}
        for stored in table.to_pylist():
            if stored["image"] is not None:
                place = chunk.views.names.index(stored["view"]), row_of[stored["number"]]
                images[place][0] = torch.from_numpy(decode_any(stored["image"])) * 2 - 1
        return dict(zip(chunk.views.names, images, strict=True))

    def keys(self, images: ImageSet) -> list[str]:
        """Names in an export of the images of a set that could be made."""
        found: list[str] = []
        for chunk in images.chunks:
            if not chunk.views.attribute:
                found += chunk.keys("observed")
                continue
            table = read_parquet(self.place(chunk), IMAGE_SCHEMA, columns=["number", "view", "made"])
            made = {(row["number"], row["view"]) for row in table.to_pylist() if row["made"]}
            numbers = chunk.studies["number"].to_pylist()
            for view in chunk.views.names:
                named = zip(numbers, chunk.keys(view), strict=True)
                found += [key for number, key in named if (number, view) in made]
        return found

    def whole(self, images: ImageSet) -> list[int]:
        """Positions of the studies of which every image could be made."""
        missing: set[int] = set()
        for chunk in images.chunks:
            table = read_parquet(self.place(chunk), IMAGE_SCHEMA, columns=["number", "made"])
            missing |= set(table.filter(pc.invert(table["made"]))["number"].to_pylist())
        numbers = images.studies["number"].to_pylist()
        return [row for row, number in enumerate(numbers) if number not in missing]


def _row(number: int, view: str, image: Tensor) -> dict[str, Any]:
    made = bool(image.isfinite().all())
    return {"number": number, "view": view, "made": made, "image": png(image) if made else None}


@dataclass(frozen=True)
class _Settings:
    """An audit's settings as `opened` reads them."""

    config: AuditJobConfig

    @property
    def bank_studies(self) -> int:
        """Training studies that the generator may read."""
        return self.config.bank_studies

    @property
    def generator(self) -> dict[str, Any]:
        """Settings of its stage."""
        return self.config.generator
