"""Audit classifiers for dependence on attributes, by counterfactuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    generator: Annotated[str, typer.Option(help="Bundle of a generator, or exact on phantom data.")],
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    attribute: Annotated[
        list[str],
        typer.Option(help="Such as sex or scanner, or age with --set doses.age=[40,60,80]. Repeatable."),
    ],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the results; run again to continue.")],
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundle, Hugging Face folder, .onnx, .csv of predictions, module:function, or a YAML file "
            "that describes any of these, weights or an endpoint. Repeatable."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundle that measures gates: demographic (regressor for age), classifier, identity_encoder. "
            "Repeatable."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Folder of images and scores that audits share. Default: in --out.")
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Audit classifiers for dependence on attributes, by counterfactuals.

    The exit status is 0 if every classifier has a verdict on every attribute; 3 if some have none, which the
    last line of standard error names, while the report has the others; 1 if nothing could be audited.
    """

    def work() -> Mapping[str, Any]:
        from counterray.config import load
        from jobs.auditing.job import audit
        from jobs.auditing.request import AuditJobConfig

        config = load(AuditJobConfig, None, overrides or ())
        connect(address)
        places = {"generator": generator, "data": data, "out": out, "cache": cache}
        asked = {"classifiers": classifier or [], "attributes": attribute, "judges": judge or []}
        return audit(config, **places, **asked)  # type: ignore[arg-type]

    run(work, as_json=as_json, summary=_summary, left_out=left_out)


def left_out(result: Mapping[str, Any]) -> str:
    """What was asked for and has no verdict, in a sentence; empty where all has."""
    missing = result["incomplete"]
    if not missing:
        return ""
    return (
        f"Without a verdict: {'; '.join(missing)}. The reasons stand beside what was refused; all else is "
        "done and kept. Mend them, or leave them out, and run again to continue."
    )


def _summary(result: Mapping[str, Any]) -> str:
    lines = [f"  {a:10s} {n:40s} {v}" for a, each in result["verdicts"].items() for n, v in each.items()]
    lines += [f"refused: {name}: {why}" for part in result["refused"].values() for name, why in part.items()]
    lines += [f"note: {text}" for text in result["warnings"]]
    if result["export"]:
        lines += [
            f"exported: {result['exported']} images in {result['export']}",
            "next: predict every image there, write the probabilities into a copy of its template.csv (leave "
            "out columns that are not predicted), and run the same command without export=true and with "
            "--classifier <copy>.csv",
        ]
    return "\n".join([*lines, *([result["report"]] if result["report"] else [])])
