"""``generate`` from request to contact sheet: what is missing is made, what is there is kept."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow.fs import FileSelector
from torch import Tensor

from counterray import __version__
from counterray.bundle import Bundle, code_version, open_bundle
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.dicom import decode_any
from counterray.evaluation.contact_sheet import Tile, contact_sheet
from counterray.evaluation.sections import findings_text
from counterray.models.generator import Edit
from counterray.storage import Location, resolve
from counterray.training.run_folder import RunLock
from jobs.generation.chunks import ROWS_FILE, ChunkWriter, describe, finished, parquet
from jobs.generation.request import (
    REQUEST_FILE,
    GenerateConfig,
    GenerationError,
    Request,
    check_folder,
    claim,
    make_request,
)
from jobs.generation.selection import Chunk, plan, read_batch
from jobs.generation.workers import workers

logger = logging.getLogger(__name__)

SHEET_FILE = "contact_sheet.html"
SKIPPED_FILE = "skipped.parquet"


def generate(config: GenerateConfig, *, model: str, data: str, out: str) -> Mapping[str, Any]:
    """Makes the images of a request that are not there yet; returns the job's result.

    Below ``out``: ``images/<chunk>/`` with the images and their provenance, each chunk published once, whole
    or not at all; then ``provenance.parquet`` and ``skipped.parquet`` over all chunks, and a contact sheet.

    Args:
        config: What to make.
        model: The generator's bundle.
        data: The dataset whose studies are edited.
        out: The folder, which belongs to this request alone.

    Raises:
        BundleError: If the bundle cannot be trusted.
        EditError: If the generator makes no such edits, or knows no such finding.
        GenerationError: If ``out`` holds something else, or no image could be made.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    asked = config.edit()
    dataset, bundle = open_dataset(data), open_bundle(model)
    _require(asked, bundle, dataset)
    request, target = make_request("generate", bundle, dataset, config), resolve(out)
    check_folder(target, request)
    chunks = plan(dataset, config)
    with RunLock(target, work="generation"):
        claim(target, request)
        remove_leftovers(target / "images")
        done = finished(target, chunks)
        missing = [chunk for chunk in chunks if chunk.name not in done]
        logger.info("%d of %d chunks are there already", len(done), len(chunks))
        if missing:
            writer = ChunkWriter(bundle, dataset, target, config, request, code_version())
            try:
                _make(writer, missing)
            except Exception:
                if not finished(target, chunks):  # so that a corrected request finds the folder free
                    (target / REQUEST_FILE).delete()
                raise
            done = finished(target, chunks)
        rows = pa.concat_tables([done[chunk.name] for chunk in chunks])
        made = rows.filter(pc.is_valid(rows["file"]))
        skipped = rows.filter(pc.is_null(rows["file"]))
        (target / ROWS_FILE).write_bytes(parquet(made))
        (target / SKIPPED_FILE).write_bytes(parquet(skipped))
        _require_some(made, skipped, target)
        sheet = _sheet(made, chunks, dataset, bundle, target, config, request)
        (target / SHEET_FILE).write_bytes(sheet.encode())
    return {
        "out": target.uri,
        "images": len(made),
        "skipped": dict(Counter(skipped["reason"].to_pylist())),
        "contact_sheet": (target / SHEET_FILE).uri,
        "seconds": round(time.monotonic() - started, 1),
    }


def _require(asked: Edit, bundle: Bundle, dataset: Dataset) -> None:
    """What can be checked of an edit before a worker opens the generator."""
    findings, levels = bundle.metadata.get("finding_names", ()), bundle.metadata.get("levels", {})
    asked.require(findings, levels).require(dataset.manifest.finding_names, levels)


def _make(writer: ChunkWriter, missing: list[Chunk]) -> None:
    images = skipped = 0
    with workers(writer.open, writer.config.resources, at_most=len(missing)) as do:
        for count, result in enumerate(do(missing), start=1):
            images += result["images"]
            skipped += result["skipped"]
            if count == len(missing) or count % max(1, len(missing) // 10) == 0:
                logger.info("%d of %d chunks: %d images, %d skipped", count, len(missing), images, skipped)


def remove_leftovers(folder: Location) -> None:
    """Deletes what a killed run of the same request left half written; only under the folder's lock."""
    if not folder.is_local or not folder.exists():
        return
    for info in folder.filesystem.get_file_info(FileSelector(folder.path)):
        if info.base_name.startswith(".") and info.base_name.endswith(".partial"):
            (folder / info.base_name).delete()


def _require_some(made: pa.Table, skipped: pa.Table, target: Location) -> None:
    if not len(made):
        raise GenerationError(
            f"None of the {len(skipped)} images could be made; the first because: {skipped['detail'][0]} "
            f"All reasons are in {(target / SKIPPED_FILE).uri}."
        )


def _sheet(
    made: pa.Table,
    chunks: list[Chunk],
    dataset: Dataset,
    bundle: Bundle,
    target: Location,
    config: GenerateConfig,
    request: Request,
) -> str:
    shown = made.slice(0, config.contact_sheet)
    asked = describe(config.edit(), config)
    facts = {
        "Asked for": asked,
        "Generator": f"{bundle.stage} {bundle.checksum}",
        "Data": f"{dataset.manifest.source}, split {config.split}",
        "Data fingerprint": dataset.manifest.fingerprint,
        "Seed": str(config.seed),
        "Request": request.checksum,
    }
    return contact_sheet(
        _tiles(shown, chunks, dataset, target) if len(shown) else [],
        title="Counterfactuals",
        lead=f"{len(made)} synthetic images, asked for: {asked}. The first {len(shown)} are shown.",
        facts=facts,
        footer=f"Made by counterray {__version__}.",
    )


def _tiles(shown: pa.Table, chunks: list[Chunk], dataset: Dataset, target: Location) -> list[Tile]:
    last = shown["number"][-1].as_py()
    wanted = pa.array(shown["number"].to_pylist())
    needed = [chunk for chunk in chunks if chunk.items["number"][0].as_py() <= last]
    items = pa.concat_tables([chunk.items for chunk in needed])
    keep = pc.is_in(items["number"], wanted)
    before, donor = read_batch(dataset, items.filter(keep)), None
    if needed[0].donors is not None:
        donor = read_batch(dataset, pa.concat_tables([chunk.donors for chunk in needed]).filter(keep))
    return [
        Tile(
            caption=f"No. {row['number'] + 1}, input: {findings_text(before, place)}",
            before=before.image[place],
            after=_read_image(target / row["file"]),
            donor=None if donor is None else donor.image[place],
        )
        for place, row in enumerate(shown.select(["number", "file"]).to_pylist())
    ]


def _read_image(place: Location) -> Tensor:
    """An image that was written, as ``[1, H, W]`` in [-1, 1]."""
    return torch.from_numpy(decode_any(place.read_bytes()))[None] * 2 - 1
