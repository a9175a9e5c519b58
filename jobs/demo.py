"""From nothing to reports: ingest, judges, generator, evaluation, audit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.audit import left_out
from jobs.common import Address, AsJson, Overrides, connect, run

CONFIGS = Path(__file__).parent / "configs" / "demo"


def main(
    data: Annotated[
        str, typer.Option(help="Which demo: phantom; with --root nih_cxr14, covid_cxr or nih_cxr14_audit.")
    ] = "phantom",
    root: Annotated[str | None, typer.Option(help="Folder of the source in its official layout.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder or s3:// URI. Default: .local/demo/<data>.")] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """From nothing to reports: ingest, judges, generator, evaluation, audit."""

    def work() -> Mapping[str, Any]:
        from jobs.pipeline import run_pipeline
        from jobs.pipeline_config import read_pipeline

        path = CONFIGS / f"{Path(data).name}.yaml"
        config = read_pipeline(path, overrides or [])
        connect(address)
        return run_pipeline(path, config, root=root, out=out or f".local/demo/{data}")

    run(work, as_json=as_json, summary=_summary, left_out=_left_out)


def _left_out(result: Mapping[str, Any]) -> str:
    return left_out(result["audit"]) if "audit" in result else ""


def _summary(result: Mapping[str, Any]) -> str:
    audited = result.get("audit", {}).get("report")
    reports = [place for place in (result.get("report"), audited) if place]
    return "\n".join([f"done in {result['seconds']:.0f} s", *reports])
