"""Compute latents and text states of a dataset once, for latent diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    data: Annotated[str, typer.Option(help="Dataset of an ingest or refine: folder or s3:// URI.")],
    gsvae: Annotated[str, typer.Option(help="Bundle of the gsvae that encodes images.")],
    text: Annotated[str, typer.Option(help="Bundle of the image_text_encoder that encodes prompts.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the new dataset.")],
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compute latents and text states of a dataset once, for latent diffusion."""

    def work() -> Mapping[str, Any]:
        from counterray.config import load
        from counterray.models.pathology_ldm.encoding import EncodeConfig
        from jobs.encoding import encode

        config = load(EncodeConfig, None, overrides or ())
        connect(address)
        return encode(config, data=data, gsvae=gsvae, text=text, out=out)

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    return f"{result['studies']} studies, {result['prompts']} with a prompt\ndataset: {result['dataset']}"
