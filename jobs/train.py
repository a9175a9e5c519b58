"""Train one stage on Ray with DeepSpeed and write its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    config: Annotated[
        str, typer.Option(help="Training YAML, such as jobs/configs/train/gsvae_phantom.yaml.")
    ],
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of this run alone.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue", help="Continue the run that --out holds, or begin it where there is none."
        ),
    ] = False,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train one stage on Ray with DeepSpeed and write its bundle."""

    def work() -> Mapping[str, Any]:
        from counterray import catalog
        from counterray.storage import resolve
        from counterray.training.ray_train import train
        from counterray.training.run_folder import RunError

        stage, settings = catalog.read_training(config, overrides or ())
        if resume and not (resolve(out) / "run.json").exists():
            raise RunError(f"--resume: {out} holds no training. Check --out, or begin one with --continue.")
        connect(address)
        method = catalog.entry(stage.name).method
        trained = train(stage, settings, method=method, data=data, out=out, resume=resume or go_on)
        return {"bundle": trained.bundle.location.uri, "metrics": dict(trained.metrics)}

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    metrics = "\n".join(f"  {name:32s} {value:.4g}" for name, value in result["metrics"].items())
    return f"{metrics}\nbundle: {result['bundle']}"
