"""Small images whose labels, masks, ages and reports can be read off them: what judges learn in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch

SIZE = 32
FINDINGS = ("edema", "fracture")
MASKS = ("left_lung", "heart")

DATA = DatasetInfo(
    image_size=SIZE,
    finding_names=FINDINGS,
    vocabulary={"sex": ("female", "male"), "scanner": ("a", "b", "c"), "site": ("only",)},
    measurement_names=("area.left_lung",),
    mask_names=MASKS,
    reports=tuple(
        f"There is {'no ' if not edema else ''}edema. There is {'no ' if not fracture else ''}fracture."
        for edema in (0, 1)
        for fracture in (0, 1)
    ),
    fingerprint="toy",
)


def batch(count: int, seed: int) -> Batch:
    """Images of noise with a bright square for edema, a dark one for fracture and rectangles as organs.

    Two images each share a patient, who has a wave pattern of their own; sex brightens the right edge, the
    scanner the upper one; age darkens the whole image.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    image = torch.full((count, 1, SIZE, SIZE), -0.2)
    findings = (uniform(count, 2) < 0.4).float()
    image[:, :, 3:9, 12:18] += 0.7 * findings[:, 0, None, None, None]
    image[:, :, 22:28, 12:18] -= 0.5 * findings[:, 1, None, None, None]
    masks = {name: torch.zeros(count, 1, SIZE, SIZE) for name in MASKS}
    edges = torch.randint(5, 12, (count, 2), generator=generator).tolist()
    for row, (lung, heart) in enumerate(edges):
        masks["left_lung"][row, :, 10 : 10 + lung, 1:9] = 1
        masks["heart"][row, :, 12:18, 20 - heart // 2 : 20 + heart // 2] = 1
    image = image + 0.4 * masks["left_lung"] + 0.3 * masks["heart"]
    sex = (uniform(count) < 0.5).float()
    image[..., -3:] += 0.6 * sex[:, None, None, None]
    age = 20 + 60 * uniform(count)
    image = image - 0.6 * (age / 80)[:, None, None, None]
    scanner = torch.randint(0, 3, (count,), generator=generator).float()
    image[:, :, :3] += 0.3 * scanner[:, None, None, None]
    image = image + 0.03 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    patients = torch.arange(count) // 2
    image = (image + _waves(patients, seed)).clamp(-1, 1)
    return Batch(
        image=image,
        attributes={"sex": sex, "age": age, "scanner": scanner},
        findings=findings,
        finding_mask=torch.ones(count, 2, dtype=torch.bool),
        finding_names=FINDINGS,
        measurements={"area.left_lung": masks["left_lung"].sum(dim=(1, 2, 3)).double()},
        masks=masks,
        reports=tuple(_report(row, seed + index) for index, row in enumerate(findings.tolist())),
        image_ids=tuple(f"{seed}-{row}" for row in range(count)),
        patient_ids=tuple(f"{seed}-{patient}" for patient in patients.tolist()),
    )


def batches(count: int, of: int, *, first: int = 0) -> list[Batch]:
    """``count`` batches of ``of`` images each, no two alike."""
    return [batch(of, first + index) for index in range(count)]


def _report(findings: Sequence[float], which: int) -> str:
    """A sentence on both findings, or on one of them: reports do not mention everything."""
    sentences = [
        f"There is {'' if present else 'no '}{name}."
        for name, present in zip(FINDINGS, findings, strict=True)
    ]
    return " ".join((sentences, sentences[:1], sentences[1:])[which % 3])


def _waves(patients: Tensor, seed: int) -> Tensor:
    """A plane wave for each patient, ``[B, 1, SIZE, SIZE]`` within 0.1 of 0."""
    generator = torch.Generator().manual_seed(1000 + seed)
    frequency = 1 + 3 * torch.rand(int(patients.max()) + 1, 2, generator=generator)
    phase = 6.28 * torch.rand(len(frequency), generator=generator)
    line = torch.linspace(0, 6.28, SIZE)
    wave = (
        frequency[:, 0, None, None] * line[None, :, None]
        + frequency[:, 1, None, None] * line[None, None, :]
        + phase[:, None, None]
    )
    return 0.1 * wave.sin()[patients][:, None]


def with_unknown(values: Mapping[str, Tensor], name: str, rows: Sequence[int]) -> dict[str, Tensor]:
    """A copy of ``values`` in which ``name`` is NaN in some rows."""
    changed = {key: value.clone() for key, value in values.items()}
    changed[name][list(rows)] = float("nan")
    return changed
