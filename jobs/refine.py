"""Keep of each report what it says of the findings, as a short prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the new dataset.")],
    refiner: Annotated[
        str, typer.Option(help="rules (offline) or llm, at the endpoint that COUNTERRAY_LLM_BASE_URL names.")
    ] = "rules",
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Keep of each report what it says of the findings, as a short prompt."""

    def work() -> Mapping[str, Any]:
        from counterray.config import load
        from counterray.reports.transform import RefineConfig
        from jobs.refinement import refine

        config = load(RefineConfig, None, [f"refiner.name={refiner}", *(overrides or ())])
        connect(address)
        result = dict(refine(config, data=data, out=out))
        if as_json:
            del result["text"]
        return result

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    causes = ", ".join(f"{cause} {count}" for cause, count in result["fell_back"].items()) or "none"
    return (
        f"{result['text']}\n{result['refined']} of {result['reports']} reports refined, {result['cached']} "
        f"from the cache; left to the rules: {causes}\n"
        f"reports that do not describe the image: {result['undescribed']}, without a prompt\n"
        f"fingerprint: {result['fingerprint']}\ndataset: {result['dataset']}"
    )
