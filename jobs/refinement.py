"""From a dataset with reports to one with refined reports: what the job ``refine`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from counterray.data.dataset import DatasetManifest, open_dataset
from counterray.data.derive import derive
from counterray.data.labels import FINDINGS
from counterray.reports.agreement import Agreement, combined, from_plain
from counterray.reports.llm import LlmConfig, endpoint_from_environment
from counterray.reports.transform import RefineConfig, RefineTransform, fallbacks
from counterray.storage import Location, StorageError, resolve

_TEXTS = "reports.parquet"
"""Reports without an image."""

_KNOWN = ("present", "absent", "uncertain")


def refine(config: RefineConfig, *, data: str, out: str) -> Mapping[str, Any]:
    """Refines a dataset's reports, also those without an image. Running it again does what is missing.

    Args:
        config: The refiner and its settings.
        data: Dataset of an ingest: folder or ``s3://`` URI.
        out: The new dataset's folder or ``s3://`` URI.

    Returns:
        ``dataset``, ``reports`` that describe the image, ``undescribed`` ones, ``refined`` (by the refiner
        asked for), ``fell_back`` by cause, ``cached``, ``agreement`` (macro F1 of the ten commonest findings
        against the labels; NaN without labels), ``fingerprint`` and the table's ``text``.

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

    derived = derive(dataset, out, make, kind="refined", settings=settings, beside=[_TEXTS], workers=workers)
    counts = [count for group in derived.counts.values() for count in group]
    reports = sum(count["reports"] for count in counts)
    if not reports:
        raise StorageError(f"The dataset at {dataset.location.uri} has no report that describes an image.")
    table = combined(from_plain(count["agreement"]) for count in counts)
    events = sum((Counter(count["events"]) for count in counts), Counter[str]())
    (derived.out / "agreement.json").write_json({**table.plain(), "settings": settings})
    aside = derived.out / "quarantine.parquet"
    if (dataset.location / "quarantine.parquet").exists() and not aside.exists():
        aside.write_bytes((dataset.location / "quarantine.parquet").read_bytes())
    changes = {} if config.labels == "keep" else relabelled(dataset.manifest, derived.counts)
    manifest = derived.finish(config={"refine": settings, "of": dataset.manifest.config}, **changes)
    silent = sum(count.get("undescribed", 0) for count in counts)  # not counted by early versions
    return _result(derived.out, reports, silent, events, table, manifest.fingerprint)


def relabelled(manifest: DatasetManifest, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What a manifest says of findings once reports have given labels.

    Args:
        manifest: Before.
        parts: Split to what each part's transform counted.
    """
    counts = {}
    for split, before in manifest.counts.items():
        total: dict[str, Counter[str]] = {}
        for part in parts[split]:
            for name, found in part["labels"].items():
                total.setdefault(name, Counter()).update(found)
        # A part without any label of a finding does not count its images.
        known = {name: sum(found[key] for key in _KNOWN) for name, found in total.items()}
        findings = {
            name: {**{key: total[name][key] for key in _KNOWN}, "unknown": before["studies"] - known[name]}
            for name in FINDINGS
            if name in total
        }
        counts[split] = {**before, "findings": findings}
    labelled = {name for split in counts.values() for name in split["findings"]}
    filled = sum(part["filled"] for split in manifest.counts for part in parts[split])
    return {
        "counts": counts,
        "finding_names": tuple(name for name in FINDINGS if name in labelled),
        "notes": {**manifest.notes, "labels_from_reports": filled},
    }


def _result(
    out: Location, reports: int, silent: int, events: Counter[str], table: Agreement, fingerprint: str
) -> dict[str, Any]:
    causes = fallbacks(events)
    return {
        "dataset": out.uri,
        "reports": reports,
        "undescribed": silent,
        "refined": reports - sum(causes.values()),
        "fell_back": dict(causes),
        "cached": events["cached"],
        "agreement": table.macro_f1(10),
        "fingerprint": fingerprint,
        "text": table.text(),
    }
