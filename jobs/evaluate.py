"""Score a bundle on a dataset's test split and write a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    model: Annotated[str, typer.Option(help="Bundle of a generator or a judge: folder or s3:// URI.")],
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the report.")],
    judge: Annotated[
        list[str] | None, typer.Option(help="Bundle of a judge that scores a generator. Repeatable.")
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a bundle on a dataset's test split and write a report."""

    def work() -> Mapping[str, Any]:
        from counterray.config import load
        from jobs.evaluation import EvaluateConfig, evaluate

        config = load(EvaluateConfig, None, overrides or ())
        connect(address)
        return evaluate(config, model=model, data=data, out=out, judges=judge or ())

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    values = {name: value for name, value in result["metrics"].items() if value is not None}
    metrics = "\n".join(f"  {name:44s} {value:.4g}" for name, value in values.items())
    return f"{metrics}\nreport: {result['report']}"
