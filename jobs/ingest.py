"""Turn raw images of a source into a dataset of Parquet shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the dataset.")],
    source: Annotated[
        str | None, typer.Option(help="Name of the source, such as phantom or nih_cxr14.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Folder or s3:// URI of the source's official layout.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Ingest YAML; the defaults without it.")] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Turn raw images of a source into a dataset of Parquet shards."""

    def work() -> Mapping[str, Any]:
        from counterray.config import load
        from counterray.data.ingest import IngestConfig, ingest
        from counterray.storage import resolve

        chosen = [f"source.name={source}"] if source else []
        settings = load(IngestConfig, config, [*chosen, *(overrides or ())])
        connect(address)
        manifest = ingest(settings, root, out)
        return {
            "dataset": resolve(out).uri,
            "studies": sum(split["studies"] for split in manifest.counts.values()),
            "patients": sum(split["patients"] for split in manifest.counts.values()),
            "splits": {name: split["studies"] for name, split in manifest.counts.items()},
            "quarantined": manifest.quarantined,
            "fingerprint": manifest.fingerprint,
        }

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {count}" for name, count in result["splits"].items())
    aside = ", ".join(f"{reason} {count}" for reason, count in result["quarantined"].items()) or "none"
    return (
        f"{result['studies']} studies of {result['patients']} patients ({splits})\n"
        f"set aside: {aside}\nfingerprint: {result['fingerprint']}\ndataset: {result['dataset']}"
    )
