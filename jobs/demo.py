"""From nothing to a report of counterfactuals: ingest, judges, generator, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run

CONFIGS = Path(__file__).parent / "configs" / "demo"


def main(
    data: Annotated[
        str, typer.Option(help="Which demo: phantom, or nih_cxr14 or covid_cxr with --root.")
    ] = "phantom",
    root: Annotated[str | None, typer.Option(help="Folder of the source in its official layout.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder or s3:// URI. Default: .local/demo/<data>.")] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """From nothing to a report of counterfactuals: ingest, judges, generator, evaluation."""

    def work() -> Mapping[str, Any]:
        from jobs.pipeline import read_pipeline, run_pipeline

        path = CONFIGS / f"{Path(data).name}.yaml"
        config = read_pipeline(path, overrides or [])
        connect(address)
        return run_pipeline(path, config, root=root, out=out or f".local/demo/{data}")

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    return f"done in {result['seconds']:.0f} s\n{result['report']}"
