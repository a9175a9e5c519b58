"""Fill up the rare findings of a training split with synthetic studies that a judge has passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run
from jobs.generate import interventions


def main(
    model: Annotated[str, typer.Option(help="Bundle of a generator: folder or s3:// URI.")],
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the new dataset; run again to continue.")],
    target: Annotated[
        list[str],
        typer.Option(help="Prevalence in the training split: finding.pneumothorax=0.05. Repeatable."),
    ],
    judge: Annotated[str, typer.Option(help="Bundle of the classifier that must see the finding.")],
    threshold: Annotated[
        float | None,
        typer.Option(help="The judge's probability below which a study is rejected. Default: 0.5."),
    ] = None,
    near_judge: Annotated[
        str | None, typer.Option(help="Bundle whose features tell near copies. Default: that of --judge.")
    ] = None,
    severity: Annotated[str | None, typer.Option(help="How marked: mild, moderate or severe.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of patients and noise. Default: 0.")] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fill up the rare findings of a training split with synthetic studies that a judge has passed."""

    def work() -> Mapping[str, Any]:
        from counterray.config import read, validate
        from jobs.augmentation.job import augment
        from jobs.augmentation.request import AugmentConfig

        given = {"threshold": threshold, "severity": severity, "seed": seed}
        settings = {name: value for name, value in given.items() if value is not None}
        values = {**read(None, overrides or ()), **settings, "targets": interventions(target)}
        config = validate(AugmentConfig, values)
        connect(address)
        return augment(config, model=model, data=data, out=out, judge=judge, near_judge=near_judge)

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    lines = [
        f"  {name:32s} {count} synthetic studies, prevalence {result['prevalence'][name]:.2%}"
        for name, count in result["synthetic"].items()
    ]
    rejected = ", ".join(f"{reason} {count}" for reason, count in result["rejected"].items()) or "none"
    return "\n".join([*lines, f"rejected: {rejected}", f"dataset: {result['dataset']}"])
