"""Ingest: a source becomes a dataset of Parquet shards."""

from __future__ import annotations

from typing import Any

from counterray.data.ingest import IngestConfig, ingest
from counterray.storage import resolve


def ingest_job(config: IngestConfig, root: str | None, out: str) -> dict[str, Any]:
    """Runs an ingest and returns the job's result."""
    manifest = ingest(config, root, out)
    return {
        "dataset": resolve(out).uri,
        "studies": sum(split["studies"] for split in manifest.counts.values()),
        "patients": sum(split["patients"] for split in manifest.counts.values()),
        "splits": {name: split["studies"] for name, split in manifest.counts.items()},
        "quarantined": manifest.quarantined,
        "fingerprint": manifest.fingerprint,
    }
