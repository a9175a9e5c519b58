"""Make counterfactuals of studies: by findings, attributes, words or a donor; or images from text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.common import Address, AsJson, Overrides, connect, run


def main(
    model: Annotated[str, typer.Option(help="Bundle of a generator: folder or s3:// URI.")],
    data: Annotated[str, typer.Option(help="Dataset of an ingest: folder or s3:// URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the images; run again to continue.")],
    split: Annotated[
        str | None,
        typer.Option(help="Split whose studies are edited. Default: test; train with --text-alone."),
    ] = None,
    studies: Annotated[int | None, typer.Option(help="Studies to edit at most. Default: all.")] = None,
    image_id: Annotated[
        list[str] | None, typer.Option(help="Only this image of the split. Repeatable.")
    ] = None,
    do: Annotated[
        list[str] | None,
        typer.Option(
            help="Set a finding, finding.pleural_effusion=1, or an attribute, sex=male. Repeatable, together "
            "one intervention."
        ),
    ] = None,
    severity: Annotated[
        str | None, typer.Option(help="With --do: how marked, mild, moderate or severe.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the images should show, in words.")] = None,
    donor: Annotated[
        str | None,
        typer.Option(
            "--from", help="Image whose pathology every study takes, or: shuffled.", metavar="IMAGE"
        ),
    ] = None,
    text_alone: Annotated[
        bool, typer.Option("--text-alone", help="With --prompt: anatomies drawn at random, --count of them.")
    ] = False,
    count: Annotated[int | None, typer.Option(help="With --text-alone: images to make.")] = None,
    samples: Annotated[int | None, typer.Option(help="Counterfactuals of each study. Default: 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. Default: 0.")] = None,
    format: Annotated[
        str | None, typer.Option(help="png, or dicom (Secondary Capture). Default: png.")
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make counterfactuals of studies: by findings, attributes, words or a donor; or images from text."""

    def work() -> Mapping[str, Any]:
        from counterray.config import ConfigError, read, validate
        from jobs.generation.job import generate
        from jobs.generation.request import GenerateConfig

        if count is not None and count < 1:
            raise ConfigError(f"--count {count}: how many anatomies are to be drawn is 1 or more.")
        if text_alone != (count is not None):
            raise ConfigError("--text-alone and --count go together: how many anatomies are to be drawn.")
        given = {
            "split": split or ("train" if text_alone else None),
            "studies": studies,
            "image_ids": image_id or None,
            "do": interventions(do) if do else None,
            "severity": severity,
            "prompt": prompt,
            "donor": donor,
            "drawn": count,
            "samples": samples,
            "seed": seed,
            "format": format,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        config = validate(GenerateConfig, {**read(None, overrides or ()), **settings})
        config.edit()
        connect(address)
        return generate(config, model=model, data=data, out=out)

    run(work, as_json=as_json, summary=_summary)


def interventions(assignments: list[str]) -> dict[str, float | str]:
    """Assignments such as ``finding.edema=1`` or ``sex=male`` by name.

    Raises:
        ConfigError: If one is no assignment, gives a finding no number, or a name is given twice.
    """
    from counterray.config import ConfigError

    values: dict[str, float | str] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        value: float | str = text
        try:
            value = float(text)
        except ValueError:
            separator = "" if name.startswith("finding.") else separator
        if not (separator and name and text) or name in values:
            raise ConfigError(
                f"{assignment!r} is not of the form finding.<name>=<number> or <attribute>=<level>, or its "
                "name is given twice."
            )
        values[name] = value
    return values


def _summary(result: Mapping[str, Any]) -> str:
    skipped = ", ".join(f"{reason} {count}" for reason, count in sorted(result["skipped"].items())) or "none"
    return (
        f"{result['images']} images in {result['seconds']:.0f} s; skipped: {skipped}\n"
        f"contact sheet: {result['contact_sheet']}\n{result['out']}"
    )
