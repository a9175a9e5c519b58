"""Phantom studies as the platform takes them: rows for ingest, or a batch without a detour."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from counterray.config import Config
from counterray.data.labels import FINDINGS
from counterray.data.phantom.population import Population, draw_population
from counterray.data.phantom.render import MASK_NAMES, render_study, to_model_range
from counterray.data.phantom.report import write_report
from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY, build_graph
from counterray.data.study import Batch, Study

_ATTRIBUTES = ("sex", "age", "group", "site", "scanner")


class PhantomConfig(Config):
    """A phantom dataset."""

    studies: int = Field(default=4000, ge=1)
    """Number of studies; 1.7 to a patient on average."""
    image_size: int = Field(default=64, ge=32, le=512)
    """Edge of the square images [px]."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of the dataset: another seed, other patients."""


def identifiers(config: PhantomConfig, start: int, stop: int) -> list[tuple[str, str]]:
    """``(image_id, patient_id)`` of the studies ``start`` to ``stop`` (exclusive), without drawing images."""
    return _identifiers(config.seed, _population(config, start, stop))


def draw_rows(config: PhantomConfig, start: int, stop: int) -> list[Study]:
    """Draws the studies ``start`` to ``stop`` (exclusive) of a dataset.

    Study i is the same whatever range it is drawn in. Splits are left to ingest: every study says ``train``.

    Raises:
        ValueError: If the range leaves the dataset.
    """
    population = _population(config, start, stop)
    studies = []
    for (image_id, patient_id), values in zip(
        _identifiers(config.seed, population), _rows(population.values), strict=True
    ):
        drawn = render_study(values, config.image_size)
        findings: dict[str, int | None] = {
            name: int(values[f"severity.{name}"] > 0) for name in FINDING_NAMES
        }
        findings["no_finding"] = int(not any(findings.values()))
        named = {name: VOCABULARY[name][int(values[name])] for name in ("sex", "group", "site", "scanner")}
        studies.append(
            Study(
                image_id=image_id,
                patient_id=patient_id,
                split="train",
                source="phantom",
                image=_png(Image.fromarray(drawn.grey)),
                height=config.image_size,
                width=config.image_size,
                view="PA",
                age=values["age"],
                findings={name: findings[name] for name in FINDINGS if name in findings},
                measurements={name: value for name, value in values.items() if name not in _ATTRIBUTES},
                masks={
                    name: _png(Image.fromarray(mask * 255).convert("1")) for name, mask in drawn.masks.items()
                },
                report=write_report(values),
                sex=named["sex"],
                group=named["group"],
                site=named["site"],
                scanner=named["scanner"],
            )
        )
    return studies


def make_batch(count: int, image_size: int, seed: int, start: int = 0) -> Batch:
    """Draws a batch straight from the model: the images, masks and values that ingest would deliver.

    Args:
        count: Number of studies.
        image_size: Edge of the images [px], 32 to 512.
        seed: Seed of the dataset.
        start: Index of the first study.

    Returns:
        A batch with the labels of `FINDING_NAMES`, all known, attributes coded by `VOCABULARY`, and every
        variable of the causal model among attributes and measurements.
    """
    config = PhantomConfig(studies=start + count, image_size=image_size, seed=seed)
    population = _population(config, start, start + count)
    values = population.values
    rows = _rows(values)
    drawn = [render_study(row, image_size) for row in rows]
    severities = torch.stack([values[f"severity.{name}"] for name in FINDING_NAMES], dim=1)
    names = _identifiers(seed, population)
    attributes = {name: values[name].float() for name in _ATTRIBUTES}
    return Batch(
        image=to_model_range(np.stack([item.grey for item in drawn])),
        attributes={**attributes, "view": torch.zeros(count), "race": torch.full((count,), torch.nan)},
        findings=(severities > 0).float(),
        finding_mask=torch.ones(count, len(FINDING_NAMES), dtype=torch.bool),
        finding_names=FINDING_NAMES,
        measurements={name: value for name, value in values.items() if name not in _ATTRIBUTES},
        masks={name: _stack([item.masks[name] for item in drawn]) for name in MASK_NAMES},
        reports=tuple(write_report(row) for row in rows),
        image_ids=tuple(image for image, _ in names),
        patient_ids=tuple(patient for _, patient in names),
    )


def parents_of(
    batch: Batch,
    vocabulary: Mapping[str, tuple[str, ...]] = VOCABULARY,
    *,
    image_size: int | None = None,
) -> dict[str, Tensor]:
    """Every variable of the causal model but the image, ``[B]`` float64 each, from a phantom batch.

    Args:
        batch: From `make_batch` or from an ingested phantom dataset.
        vocabulary: The vocabulary behind the batch's codes (``DatasetInfo.vocabulary``); a small dataset may
            lack a scanner, and then its codes are not the phantom's.
        image_size: Edge of the images [px], where the batch is without pixels.

    Raises:
        ValueError: If the batch lacks a variable.
    """
    names = [name for name in build_graph(image_size or batch.image.shape[-1]).names if name != "image"]
    known = {**batch.measurements, **batch.attributes}
    missing = [name for name in names if name not in known or bool(known[name].isnan().any())]
    if missing:
        raise ValueError(f"The batch is not of phantom studies: it lacks {', '.join(missing)}.")
    values = {name: known[name].double().cpu() for name in names}
    for name, own in VOCABULARY.items():
        if name in values and tuple(vocabulary[name]) != own:
            codes = torch.tensor([own.index(value) for value in vocabulary[name]], dtype=torch.float64)
            values[name] = codes[values[name].long()]
    return values


def _population(config: PhantomConfig, start: int, stop: int) -> Population:
    if not 0 <= start < stop <= config.studies:
        raise ValueError(f"Studies {start} to {stop} are not within the {config.studies} of this dataset.")
    return draw_population(config.seed, start, stop, image_size=config.image_size)


def _identifiers(seed: int, population: Population) -> list[tuple[str, str]]:
    return [
        (f"phantom-{seed}-{index:07d}", f"phantom-{seed}-p{patient:07d}")
        for index, patient in zip(population.index.tolist(), population.patient.tolist(), strict=True)
    ]


def _rows(values: Mapping[str, Tensor]) -> list[dict[str, float]]:
    columns = {name: value.tolist() for name, value in values.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _stack(masks: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(masks)).unsqueeze(1).float()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
