"""Latents and text states of studies, computed once, so that the diffusion's training runs no encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from counterray.config import Config
from counterray.data.batching import LoaderConfig, collate, decode
from counterray.data.dataset import DatasetInfo, TensorInfo
from counterray.models.gsvae.network import GSVAENetwork
from counterray.models.pathology_ldm.prompts import PromptSource, study_prompts
from counterray.models.pathology_ldm.text import TextEncoderConfig, TowerText
from counterray.nn.text import TextEncoder

PATHOLOGY, IDENTITY, STATES, PRESENT = "pathology", "identity", "text_states", "text_present"
"""Names of the tensors: z^n, z^1 to z^{n-1}, the prompt's states, and which of them are no padding."""


class EncodeConfig(Config):
    """What is computed of each study."""

    prompts: PromptSource = "refined_report"
    """Where a study's prompt comes from."""
    text: TextEncoderConfig = TowerText()
    """The text encoder."""
    batch_size: int = Field(default=64, ge=1)
    """Studies at a time."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a worker; 0 computes on the CPU."""
    workers: int = Field(default=1, ge=1)
    """Workers at a time."""


class LatentEncoder:
    """Implements `data.derive.Transform`: adds the four tensors to each row of a shard.

    Args:
        gsvae: A trained network.
        text: A text encoder.
        info: The dataset.
        config: Settings.
    """

    def __init__(
        self, gsvae: GSVAENetwork, text: TextEncoder, info: DatasetInfo, config: EncodeConfig
    ) -> None:
        self.gsvae, self.text, self.info, self.config = gsvae, text, info, config

    @torch.no_grad()
    def __call__(self, studies: pa.Table, split: str) -> tuple[pa.Table, Mapping[str, Any]]:
        """The studies with their tensors, and counts: those that `tensor_infos` reads, ``prompts``, ``full``.

        A full prompt fills the encoder's context; what it says beyond is not read.
        """
        columns = decode(studies, self.info, LoaderConfig(), masks=(), reports=True)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (PATHOLOGY, IDENTITY, STATES, PRESENT)}
        prompts = full = 0
        device = next(self.gsvae.parameters()).device
        for start in range(0, len(studies), self.config.batch_size):
            part = {name: values[start : start + self.config.batch_size] for name, values in columns.items()}
            batch = collate(part, self.info)
            mean, _ = self.gsvae.encode(batch.image.to(device))
            texts = study_prompts(batch, self.config.prompts)
            prompts += sum(bool(text) for text in texts)
            states = self.text.encode(texts)
            full += int(states.present.all(dim=1).sum())
            parts[PATHOLOGY].append(mean[:, -1:].cpu().numpy().astype(np.float16))
            parts[IDENTITY].append(mean[:, :-1].cpu().numpy().astype(np.float16))
            parts[STATES].append(states.states.cpu().numpy().astype(np.float16))
            parts[PRESENT].append(states.present.cpu().numpy().astype(np.uint8))
        for name, values in parts.items():
            rows = [row.tobytes() for row in np.concatenate(values)]
            studies = studies.append_column(f"tensor.{name}", pa.array(rows, pa.binary(len(rows[0]))))
        pathology = np.concatenate(parts[PATHOLOGY]).astype(np.float64)
        return studies, {
            "n": pathology.size,
            "sum": float(pathology.sum()),
            "sum_squares": float(np.square(pathology).sum()),
            "shapes": {name: list(values[0].shape[1:]) for name, values in parts.items()},
            "prompts": prompts,
            "full": full,
        }


def tensor_infos(counts: Sequence[Mapping[str, Any]]) -> dict[str, TensorInfo]:
    """What a manifest says of the tensors.

    Args:
        counts: What `LatentEncoder` counted in each shard of the training split; at least one.
    """
    total = sum(count["n"] for count in counts)
    mean = sum(count["sum"] for count in counts) / total
    variance = sum(count["sum_squares"] for count in counts) / total - mean**2
    infos = {
        name: TensorInfo(shape=tuple(shape), dtype="uint8" if name == PRESENT else "float16")
        for name, shape in counts[0]["shapes"].items()
    }
    infos[PATHOLOGY] = infos[PATHOLOGY].model_copy(update={"mean": mean, "std": max(variance, 0.0) ** 0.5})
    return infos
