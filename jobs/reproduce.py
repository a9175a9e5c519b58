"""Repeat a paper's experiment on data whose truth is known: trainings of every arm and seed, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run

CONFIGS = Path(__file__).parent / "configs" / "reproduce"


def main(
    experiment: Annotated[str, typer.Option(help="Which: causal_disentanglement.")],
    out: Annotated[
        str | None,
        typer.Option(help="Folder or s3:// URI; run again to continue. Default: .local/reproduce."),
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeat a paper's experiment on data whose truth is known: every arm and seed, and its tables."""

    def work() -> Mapping[str, Any]:
        from jobs.reproduction.experiment import make_plan, read_experiment
        from jobs.reproduction.job import reproduce

        path = CONFIGS / f"{Path(experiment).name}.yaml"
        config = read_experiment(path, overrides or [])
        plan = make_plan(path, config)
        connect(address)
        return reproduce(config, plan, out=out or ".local/reproduce")

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    verdicts = {True: "met", False: "missed", None: "not measured"}
    lines = [f"{verdicts[bar['met']]}: {bar['name']}" for bar in result["bars"]]
    return "\n".join([*lines, f"done in {result['seconds']:.0f} s", result["report"]])
