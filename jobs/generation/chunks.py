"""One chunk of a request: its studies are edited, encoded and published together, once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from counterray import __version__
from counterray.bundle import Bundle
from counterray.data.dataset import Dataset
from counterray.data.secondary_capture import Origin, encode_secondary_capture
from counterray.data.study import Batch
from counterray.data.synthetic_png import encode_png, to_grey
from counterray.data.training_batches import TrainingBatches
from counterray.evaluation.opening import open_generator, require_levels
from counterray.models.generator import Edit, Generator, image_seed
from counterray.storage import Location, StorageError, publish
from jobs.generation.editing import Edited, edit_rows
from jobs.generation.request import SHUFFLED, GenerateConfig, GenerationError, Request, parents_of
from jobs.generation.selection import Chunk, is_repeated, read_batch, read_rows

ROWS_FILE = "provenance.parquet"
"""Written last: a chunk's folder counts once it is there."""

PROVENANCE_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("file", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("donor_image_id", pa.string()),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("edit", pa.string(), nullable=False),
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("bundle_parents", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("data_fingerprint", pa.string(), nullable=False),
        pa.field("request", pa.string(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""What an image was made of, and by what. ``image_id`` is the dataset's own, which ingest has made a
pseudonym where the source's identifies a patient; ``reason`` says why there is no file."""


@dataclass
class ChunkWriter:
    """Makes chunks of a request; opens its generator in the process that first calls it.

    Attributes:
        bundle: The generator's.
        dataset: Of the studies.
        target: The request's folder.
        config: The request's settings.
        request: The request.
        code_version: Of the run, for provenance.
    """

    bundle: Bundle
    dataset: Dataset
    target: Location
    config: GenerateConfig
    request: Request
    code_version: str
    generator: Generator = field(init=False)

    def open(self) -> ChunkWriter:
        """Opens the generator and checks what can be checked without an image.

        Raises:
            EditError: If it does not know a finding that is asked for.
            GenerationError: If the bundle is no generator, of images of another size, or would make the same
                image several times.
        """
        self.generator = opened(self.bundle, self.dataset, self.config)
        edit = self.config.edit().require(self.generator.finding_names, self.generator.levels)
        seeded = not self.config.donor and (self.generator.seeded or edit.anatomy_only)
        if is_repeated(self.dataset, self.config) and not seeded:
            raise GenerationError(
                f"samples={self.config.samples}: every study would have several "
                f"images, all the same, as what this {self.bundle.stage} makes does not depend on the seed. "
                "Ask for one of each study, or, of a diffusion, for words, findings or attributes with "
                "--set generator.abduction.noise=fresh."
            )
        return self

    def __call__(self, chunk: Chunk) -> dict[str, int]:
        """Makes and publishes a chunk; returns its numbers of ``images`` and ``skipped``."""
        batch, donor = read_batch(self.dataset, chunk.items), None
        if chunk.donors is not None:
            donor = read_batch(self.dataset, chunk.donors)
        seeds = seeds_of(chunk.items, self.config.seed)
        edited = edit_rows(
            self.generator,
            batch,
            self.config.edit(),
            seeds=seeds,
            donor=donor,
            batch_size=self.config.batch_size,
        )
        rows, files = [], self._encoded(chunk, batch, edited)
        folder = f"images/{chunk.name}"
        with publish(self.target / folder, last=ROWS_FILE) as staging:
            for row, (item, name, data) in enumerate(files):
                said = {**self._facts(item, int(seeds[row])), "donor_image_id": _donor_of(chunk, row)}
                if data:
                    (staging / name).write_bytes(data)
                    digest = hashlib.sha256(data).hexdigest()
                    said |= {"file": f"{folder}/{name}", "sha256": digest, "bytes": len(data)}
                else:
                    said |= vars(edited.refusals[row])
                rows.append(said)
            (staging / ROWS_FILE).write_bytes(parquet(pa.Table.from_pylist(rows, PROVENANCE_SCHEMA)))
        return {"images": len(rows) - len(edited.refusals), "skipped": len(edited.refusals)}

    def _facts(self, item: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return {
            **{name: item[name] for name in ("number", "image_id", "sample")},
            "seed": seed,
            "edit": describe(self.config.edit(), self.config),
            "bundle": self.bundle.checksum,
            "bundle_parents": sorted(parents_of(self.bundle).items()),
            "data_fingerprint": self.dataset.manifest.fingerprint,
            "request": self.request.checksum,
            "code_version": self.code_version,
        }

    def _encoded(
        self, chunk: Chunk, batch: Batch, edited: Edited
    ) -> Iterator[tuple[dict[str, Any], str, bytes]]:
        """Each item with the name and the bytes of its file; no bytes where there is no image."""
        dicom = self.config.format == "dicom"
        spacing = read_rows(self.dataset, chunk.items, ["pixel_spacing"]) if dicom else None
        for row, item in enumerate(chunk.items.to_pylist()):
            name, data = f"{item['number']:07d}.{'dcm' if dicom else 'png'}", b""
            if row in edited.refusals:
                pass
            elif spacing is not None:
                data = encode_secondary_capture(
                    to_grey(edited.image[row], self.config.dicom_bits),
                    self._origin(item, batch.patient_ids[row]),
                    bits=self.config.dicom_bits,
                    pixel_spacing=spacing["pixel_spacing"][row].as_py(),
                )
            else:
                data = encode_png(to_grey(edited.image[row], 8), source=f"bundle {self.bundle.checksum}")
            yield item, name, data

    def _origin(self, item: Mapping[str, Any], patient: str) -> Origin:
        asked = describe(self.config.edit(), self.config)
        description = (
            f"Synthetic counterfactual by counterray {__version__}, for research; not an examination, and "
            f"not the patient's image. Generator {self.bundle.stage} {self.bundle.checksum}. Asked for: "
        )
        return Origin(
            request=self.request.checksum,
            patient=patient,
            image=f"{item['image_id']}\0{item['sample']}",
            number=item["number"] + 1,
            description=description + asked[: 1024 - len(description)],
            software=__version__,
        )


class GeneratorSettings(Protocol):
    """The settings of a job that concern its generator."""

    @property
    def bank_studies(self) -> int:
        """Training studies that it may read."""

    @property
    def generator(self) -> dict[str, Any]:
        """Settings of its stage."""


def opened(bundle: Bundle, dataset: Dataset, config: GeneratorSettings) -> Generator:
    """The generator of a bundle, for images of a dataset.

    Raises:
        GenerationError: If the bundle is no generator, its settings are refused, or its images or its
            attributes' levels are others than the data's.
    """
    try:
        generator = open_generator(
            bundle, TrainingBatches(dataset, config.bank_studies), settings=config.generator
        )
        require_levels(generator.levels, dataset.manifest.vocabulary)
    except ValueError as error:
        raise GenerationError(str(error)) from error
    if generator.image_size != dataset.manifest.image_size:
        raise GenerationError(
            f"--model {bundle.location.uri} makes images of {generator.image_size} px; those of --data "
            f"{dataset.location.uri} have {dataset.manifest.image_size} px. Ingest the data with image_size="
            f"{generator.image_size}."
        )
    return generator


def seeds_of(items: pa.Table, seed: int) -> Tensor:
    """Seeds ``[B]`` long of the images of ``items``."""
    pairs = zip(items["image_id"].to_pylist(), items["sample"].to_pylist(), strict=True)
    return torch.tensor([image_seed(seed, image_id, sample) for image_id, sample in pairs])


def describe(edit: Edit, config: GenerateConfig) -> str:
    """What was asked for, as one line of JSON, without the name of an image."""
    ways: dict[str, Any] = {"do": dict(edit.do), "severity": edit.severity, "prompt": edit.prompt}
    ways["donor"] = config.donor if config.donor in ("", SHUFFLED) else "one image"
    return json.dumps({name: value for name, value in ways.items() if value}, sort_keys=True)


def finished(target: Location, chunks: list[Chunk]) -> dict[str, pa.Table]:
    """Name of each chunk that is there whole, with every file of its recorded size, to its provenance."""
    sizes = target.sizes()
    found = {}
    for chunk in chunks:
        place = f"images/{chunk.name}/{ROWS_FILE}"
        if place not in sizes:
            continue
        rows = read_parquet(target / place, PROVENANCE_SCHEMA)
        files = zip(rows["file"].to_pylist(), rows["bytes"].to_pylist(), strict=True)
        if all(file is None or sizes.get(file) == size for file, size in files):
            found[chunk.name] = rows
    return found


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(place: Location, schema: pa.Schema, *, columns: list[str] | None = None) -> pa.Table:
    """A small Parquet file that `parquet` wrote, or some columns of it.

    Raises:
        StorageError: If it is damaged.
    """
    try:
        return pq.read_table(io.BytesIO(place.read_bytes()), schema=schema, columns=columns)
    except pa.ArrowException as error:
        raise StorageError(
            f"{place.uri} is damaged ({type(error).__name__}). Delete it and run again."
        ) from error


def _donor_of(chunk: Chunk, row: int) -> str | None:
    return None if chunk.donors is None else str(chunk.donors["image_id"][row].as_py())
