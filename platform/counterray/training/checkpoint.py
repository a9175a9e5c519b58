"""What a checkpoint holds beside the engine's state, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

WEIGHTS = "weights.safetensors"
"""The whole weights that validate and export (the EMA's, where there is one), in fp32."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, the same on every rank.

    Attributes:
        step: Optimizer steps done.
        world_size: Number of workers that saved this.
        best: Best value of the monitored metric so far, or ``None``.
        stale: Validations since then.
        stopped: Whether early stopping ended the run.
        ema_updates: Updates of the moving average.
        metrics: Metrics of the validation at this step.
    """

    step: int = 0
    world_size: int = 1
    best: float | None = None
    stale: int = 0
    stopped: bool = False
    ema_updates: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def after_validation(
        self, metrics: dict[str, float], *, monitor: str, direction: str, patience: int
    ) -> Progress:
        """Progress with a validation's metrics counted in.

        Raises:
            KeyError: If the stage's monitored metric is not among ``metrics``.
        """
        if monitor not in metrics:
            raise KeyError(f"The stage monitors {monitor!r}, which its validation does not report.")
        value = metrics[monitor]
        sign = 1.0 if direction == "max" else -1.0
        better = np.isfinite(value) and (self.best is None or sign * value > sign * self.best)
        stale = 0 if better else self.stale + 1
        return replace(
            self,
            best=value if better else self.best,
            stale=stale,
            stopped=patience > 0 and stale >= patience,
            metrics=metrics,
        )


@dataclass(frozen=True)
class RankState:
    """What one rank needs to continue: its place in the data and its random states."""

    block: int
    row: int
    torch_cpu: Tensor
    torch_cuda: Tensor | None

    @classmethod
    def capture(cls, block: int, row: int) -> RankState:
        """The random states of now."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(block, row, torch.get_rng_state(), cuda)

    def restore_randomness(self) -> None:
        """Makes torch draw what it would have drawn next."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.torch_cuda)


def save_rank(folder: Path, rank: int, state: RankState) -> None:
    """Writes a rank's state."""
    tensors = {"torch_cpu": state.torch_cpu, "position": torch.tensor([state.block, state.row])}
    if state.torch_cuda is not None:
        tensors["torch_cuda"] = state.torch_cuda
    safetensors.torch.save_file(tensors, folder / f"rank-{rank:05d}.safetensors")


def load_rank(folder: Path, rank: int) -> RankState:
    """Reads a rank's state."""
    tensors = safetensors.torch.load_file(folder / f"rank-{rank:05d}.safetensors")
    block, row = tensors["position"].tolist()
    return RankState(block, row, tensors["torch_cpu"], tensors.get("torch_cuda"))


def save_progress(folder: Path, progress: Progress, weights: dict[str, Tensor]) -> None:
    """Writes what all ranks share; rank 0 calls it."""
    safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    (folder / "progress.json").write_text(json.dumps(asdict(progress)))


def load_progress(folder: Path) -> Progress:
    """Reads what all ranks share.

    Raises:
        FileNotFoundError: If the checkpoint is incomplete.
    """
    path = folder / "progress.json"
    if not path.is_file():
        raise FileNotFoundError("The checkpoint has no progress.json: it is incomplete. Resume from another.")
    values: dict[str, Any] = json.loads(path.read_text())
    return Progress(**values)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Reads the whole weights that validate and export."""
    return safetensors.torch.load_file(folder / WEIGHTS)
