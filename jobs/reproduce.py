"""Repeat a paper's experiment on data whose truth is known: every arm, world and seed, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run

CONFIGS = Path(__file__).parent / "configs" / "reproduce"


def main(
    experiment: Annotated[str, typer.Option(help="Which: causal_disentanglement or cit_lr.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder or s3:// URI; run again to continue. Default: .local/reproduce/<experiment>."
        ),
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeat a paper's experiment on data whose truth is known: every arm and seed, and its tables."""

    def work() -> Mapping[str, Any]:
        from jobs.reproduction.job import read_experiment, reproduce

        chosen = read_experiment(CONFIGS / f"{Path(experiment).name}.yaml", overrides or [])
        connect(address)
        return reproduce(chosen, out=out or f".local/reproduce/{Path(experiment).name}")

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    verdicts = {True: "met", False: "missed", None: "not measured"}
    lines = [f"{verdicts[bar['met']]}: {bar['name']}" for bar in result["bars"]]
    return "\n".join([*lines, f"done in {result['seconds']:.0f} s", result["report"]])
