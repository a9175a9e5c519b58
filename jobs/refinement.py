"""From a dataset with reports to one with refined reports: what the job ``refine`` does."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from counterray.config import ConfigError
from counterray.data.chunks import pack
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.derive import Derived, derive
from counterray.reports.agreement import Agreement, combined, from_plain
from counterray.reports.llm import LlmConfig, endpoint_from_environment
from counterray.reports.refine import RefineError
from counterray.reports.transform import RefineConfig, RefineTransform, fallbacks
from counterray.storage import Location, StorageError, resolve

logger = logging.getLogger(__name__)

_TEXTS = "reports.parquet"
_TEXT_ROWS = 256
"""Reports without an image that a worker reads at a time."""


def refine(config: RefineConfig, *, data: str, out: str) -> Mapping[str, Any]:
    """Refines a dataset's reports, also those without an image. Running it again does what is missing.

    Args:
        config: The refiner and its settings.
        data: Dataset of an ingest: folder or ``s3://`` URI.
        out: The new dataset's folder or ``s3://`` URI.

    Returns:
        ``dataset``, ``reports``, ``refined`` (by the refiner asked for), ``fell_back`` by cause, ``cached``,
        ``agreement`` (macro F1 of the ten commonest findings against the labels; NaN without labels),
        ``fingerprint`` and the table's ``text``.

    Raises:
        RefineError: If no endpoint is set for ``llm``, it refuses, or too many reports fell back.
        StorageError: If ``data`` is no dataset with reports, or ``out`` holds something else.
    """
    dataset = open_dataset(data)
    if dataset.manifest.tensors:
        raise StorageError(
            f"The dataset at {dataset.location.uri} carries text states of its present prompts. Refine the "
            "dataset that it was encoded from."
        )
    is_llm = isinstance(config.refiner, LlmConfig)
    endpoint = endpoint_from_environment() if is_llm else None
    cache = resolve(config.cache or f"{resolve(out).uri}/cache")
    settings = config.content_settings(endpoint)
    # One worker for the endpoint, so that ``refiner.concurrency`` is the number of requests in flight.
    workers = 1 if is_llm else max(1, int(ray.cluster_resources().get("CPU", 1)))

    def make() -> RefineTransform:
        return RefineTransform(config, endpoint, cache)

    derived = derive(dataset, out, make, kind="refined", settings=settings, workers=workers)
    counts = [count for group in derived.counts.values() for count in group]
    counts += _refine_texts(dataset, derived, make, workers=workers)
    reports = sum(count["reports"] for count in counts)
    if not reports:
        raise StorageError(f"The dataset at {dataset.location.uri} has no report to refine.")
    table = combined(from_plain(count["agreement"]) for count in counts)
    events = sum((Counter(count["events"]) for count in counts), Counter[str]())
    (derived.out / "agreement.json").write_json({**table.plain(), "settings": settings})
    aside = derived.out / "quarantine.parquet"
    if (dataset.location / "quarantine.parquet").exists() and not aside.exists():
        aside.write_bytes((dataset.location / "quarantine.parquet").read_bytes())
    manifest = derived.finish(config={"refine": settings, "of": dataset.manifest.config})
    return _result(derived.out, reports, events, table, manifest.fingerprint)


def _result(
    out: Location, reports: int, events: Counter[str], table: Agreement, fingerprint: str
) -> dict[str, Any]:
    causes = fallbacks(events)
    return {
        "dataset": out.uri,
        "reports": reports,
        "refined": reports - sum(causes.values()),
        "fell_back": dict(causes),
        "cached": events["cached"],
        "agreement": table.macro_f1(10),
        "fingerprint": fingerprint,
        "text": table.text(),
    }


def _refine_texts(
    dataset: Dataset, derived: Derived, make: Any, *, workers: int
) -> Sequence[Mapping[str, Any]]:
    """Refines reports that have no image into a file of the same name; its metadata hold the counts."""
    source, target = dataset.location / _TEXTS, derived.out / _TEXTS
    if not source.exists():
        return []
    request = {"from": source.sha256(), "fingerprint": derived.manifest.fingerprint}
    if target.exists():
        known = json.loads(_read(target).schema.metadata[b"refined"])
        if known["request"] == request:
            counts: list[dict[str, Any]] = known["counts"]
            return counts
    reports = _read(source)
    if not len(reports):
        return []
    parts = [reports.slice(start, _TEXT_ROWS) for start in range(0, len(reports), _TEXT_ROWS)]
    tables, counts = [], []
    for table, count in _run(parts, make, workers):
        tables.append(table)
        counts.append(count)
        logger.info("refined: %d of %d parts of the reports without an image", len(tables), len(parts))
    said = {"refined": json.dumps({"request": request, "counts": counts})}
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata(said), buffer, compression="zstd")
    target.write_bytes(buffer.getvalue())
    return counts


def _run(parts: Sequence[pa.Table], make: Any, workers: int) -> Iterable[tuple[pa.Table, dict[str, Any]]]:
    """Refined parts with their counts, in order."""

    class Worker:
        def __init__(self) -> None:
            self.transform = make()

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            try:
                table, counts = self.transform(pa.ipc.open_stream(row["part"]).read_all())
            except (StorageError, ConfigError) as error:
                # Ray would keep of it only a traceback's text; the message is for the user.
                return {"number": row["number"], "part": b"", "counts": "", "error": str(error)}
            counted = json.dumps(counts)
            return {"number": row["number"], "part": pack(table), "counts": counted, "error": ""}

    rows = [{"number": number, "part": pack(part.combine_chunks())} for number, part in enumerate(parts)]
    done = {}
    results = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        Worker,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(rows))),
    )
    for result in results.iter_rows():
        if result["error"]:
            raise RefineError(result["error"])
        done[result["number"]] = (
            pa.ipc.open_stream(result["part"]).read_all(),
            json.loads(result["counts"]),
        )
    return [done[number] for number in range(len(parts))]


def _read(place: Location) -> pa.Table:
    return pq.read_table(io.BytesIO(place.read_bytes()))
