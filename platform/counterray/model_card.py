"""The model card of a bundle, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(
    manifest: Mapping[str, Any],
    *,
    intended_use: str,
    limits: str,
    training: Mapping[str, Any],
    tensors: Mapping[str, int],
) -> str:
    """Writes the card; it says nothing of places, so that a bundle is the same wherever it lies.

    Args:
        manifest: The bundle's manifest, still without checksums.
        intended_use: One paragraph.
        limits: One paragraph.
        training: What is to be said of the run.
        tensors: File stem to number of values stored.

    Returns:
        Markdown with the sections intended use, data, training, metrics, limits, parents and loading.
    """
    facts = {**training, "settings": "`config.json`", "counterray": manifest["code_version"]}
    sections = {
        "Intended use": intended_use or "Not stated by the stage that made it.",
        "Data": f"Trained on the dataset with fingerprint `{manifest['data_fingerprint']}`.",
        "Training": "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "Metrics": _metrics(manifest["metrics"], manifest["judges"]),
        "Limits": limits or "Not stated by the stage that made it.",
        "Parents": _parents(manifest["parents"]),
        "Loading": _loading(tensors),
    }
    title = f"# {manifest['method']}: {manifest['stage']}\n"
    return title + "".join(f"\n## {heading}\n\n{text.strip()}\n" for heading, text in sections.items())


def _metrics(metrics: Mapping[str, float | None], judges: Mapping[str, str]) -> str:
    if not metrics:
        table = "None were taken."
    else:
        rows = [
            f"| {name} | {'undefined' if value is None else f'{value:.4g}'} |"
            for name, value in sorted(metrics.items())
        ]
        table = "\n".join(["Taken on the validation split.", "", "| metric | value |", "|---|---|", *rows])
    named = "\n".join(f"- {name}: `{checksum}`" for name, checksum in sorted(judges.items()))
    note = "Judges, by checksum; numbers from other judges are not comparable:"
    return f"{table}\n\n{note}\n\n{named or '- none'}"


def _parents(parents: Mapping[str, Mapping[str, str]]) -> str:
    lines = [
        f"- {role}: {parent['stage']}, checksum `{parent['checksum']}`"
        for role, parent in sorted(parents.items())
    ]
    return "\n".join(lines) or "None."


def _loading(tensors: Mapping[str, int]) -> str:
    stored = "\n".join(f"- `{stem}.safetensors`: {count:,} values" for stem, count in tensors.items())
    return f"""{stored}

```python
from counterray.bundle import open_bundle

bundle = open_bundle("<folder or s3:// URI>")  # verifies every checksum; nothing is unpickled
state = bundle.tensors("{next(iter(tensors), "model")}")
```"""
