"""Who is in a phantom dataset: patients with one to three studies, each a pure function of seed and index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterray.data.phantom.mechanisms import SeededCategory, SeededSeverity, SteppedArea
from counterray.data.phantom.randomness import SEED_LIMIT, bell, hash64, uniforms
from counterray.data.phantom.scm import GROUP_SHARES, attribute_mechanisms, build_graph

_VISITS = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3)
"""Studies of each patient of a block, before shuffling: 10 patients, 17 studies, 1.7 on average."""

_BLOCK = sum(_VISITS)


@dataclass(frozen=True)
class Population:
    """Studies of a phantom dataset.

    Attributes:
        index: ``[B]`` index of each study in its dataset.
        patient: ``[B]`` index of its patient.
        visit: ``[B]`` 0 for the patient's first study, then 1 and 2.
        values: Variable of the causal model (all but the image) to ``[B]`` float64.
    """

    index: NDArray[np.int64]
    patient: NDArray[np.int64]
    visit: NDArray[np.int64]
    values: dict[str, Tensor]


def draw_population(seed: int, start: int, stop: int, *, image_size: int) -> Population:
    """Draws the studies ``start`` to ``stop`` (exclusive) of the dataset ``seed``.

    Study i is the same whatever the range it is drawn in. Areas are in px^2 of ``image_size``.
    """
    index = np.arange(start, stop, dtype=np.int64)
    patient, visit = _visits(seed, index)
    patient_seed, noise_seed = _seeds(seed, "patient", patient), _seeds(seed, "study", index)
    values = {
        name: torch.from_numpy(seeds.astype(np.float64))
        for name, seeds in (("patient_seed", patient_seed), ("noise_seed", noise_seed))
    }
    values |= _roots(patient_seed, visit)
    mechanisms = attribute_mechanisms(image_size)
    for name in build_graph(image_size).names:
        mechanism = mechanisms.get(name)
        if isinstance(mechanism, SeededCategory | SeededSeverity):
            values[name] = mechanism.draw(values)
        elif isinstance(mechanism, SteppedArea):
            # Lungs and heart belong to the patient; breath and heartbeat add to them in every study.
            standard = 0.87 * bell(patient_seed, name) + 0.49 * bell(noise_seed, name)
            values[name] = mechanism.from_standard(torch.from_numpy(standard), values)
    return Population(index, patient, visit, values)


def _visits(seed: int, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Patient and visit of each study: a block's numbers of visits are shuffled by a hash of the block."""
    patient, visit = np.empty_like(index), np.empty_like(index)
    for block in np.unique(index // _BLOCK):
        keys = uniforms(_seeds(seed, "block", np.array([block])), "order", len(_VISITS))[0]
        counts = np.array(_VISITS)[np.argsort(keys, kind="stable")]
        owners = np.repeat(np.arange(len(_VISITS)), counts)
        numbers = np.concatenate([np.arange(count) for count in counts])
        rows = index // _BLOCK == block
        patient[rows] = block * len(_VISITS) + owners[index[rows] % _BLOCK]
        visit[rows] = numbers[index[rows] % _BLOCK]
    return patient, visit


def _seeds(seed: int, stream: str, index: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = hash64(np.array([seed], dtype=np.uint64)) ^ hash64(index.astype(np.uint64))
    return np.asarray((uniforms(keys, stream, 1)[:, 0] * SEED_LIMIT).astype(np.int64))


def _roots(patient_seed: NDArray[np.int64], visit: NDArray[np.int64]) -> dict[str, Tensor]:
    u = uniforms(patient_seed, "roots", 6)
    years = 18.0 + 35.0 * (u[:, 2] + u[:, 3])
    gaps = 0.25 + 2.75 * u[:, 4:6]
    later = np.where(visit >= 1, gaps[:, 0], 0.0) + np.where(visit >= 2, gaps[:, 1], 0.0)
    # Quarter years are exact in float32, so an age survives storage unchanged.
    age = np.round(4.0 * years) / 4.0 + np.ceil(4.0 * later) / 4.0
    group = (u[:, 1:2] >= np.cumsum(GROUP_SHARES)[None, :-1]).sum(axis=1)
    return {
        "sex": torch.from_numpy((u[:, 0] < 0.5).astype(np.float64)),
        "age": torch.from_numpy(age),
        "group": torch.from_numpy(group.astype(np.float64)),
    }
