"""`Stage`: one trainable step of a method. It knows torch; what runs it may know Ray and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from counterray.bundle import Bundle
from counterray.config import Config
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch


class StageConfig(Config):
    """Base of the settings of a stage: what it builds and what it minimises."""


@dataclass(frozen=True)
class Losses:
    """A scalar to minimise and its named, unweighted parts (detached scalars, for the logs)."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """What a stage hands to the bundle writer.

    Attributes:
        tensors: File stem to state dict; ``{"model": ...}`` at least.
        metadata: What `build_from_bundle` needs beside the config to rebuild the module (plain JSON).
        files: Further files by name, such as a tokenizer's JSON.
        intended_use: One paragraph for the model card.
        limits: One paragraph for the model card.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    intended_use: str = ""
    limits: str = ""


class Stage(Protocol):
    """One trainable step of a method.

    One whose parts are trained in turns, such as a critic and what it criticises, also implements
    `counterray.training.optimizer.Alternating`.

    A stage is made from its config alone and picklable until `build` is called. Frozen networks (judges)
    are kept in ``frozen`` and never in the trained module, so that checkpoints, the EMA and the optimizer
    see only what is trained.

    Attributes:
        name: The stage's name in `catalog`, such as ``gsvae`` or ``classifier``.
        config: Its settings.
        inputs: Role to the stage name of an earlier bundle that `build` needs, such as
            ``{"identity": "identity_encoder"}``.
        frozen: Role to frozen network, filled by `build`; moved to the device by whoever runs the stage.
        needs_masks: Mask names that batches must carry.
        needs_tensors: Names of the precomputed tensors that batches must carry.
        needs_reports: Whether batches and `DatasetInfo` must carry report texts.
        direction: ``min`` or ``max``: which direction of ``monitor`` is better.
        monitor: The name in `validate`'s result that early stopping and "best checkpoint" follow.
    """

    name: str
    frozen: dict[str, nn.Module]
    needs_masks: tuple[str, ...]
    needs_tensors: tuple[str, ...]
    needs_reports: bool
    monitor: str
    direction: str

    # Read-only, so that a stage may narrow the type of its config and derive its inputs from it.
    @property
    def config(self) -> StageConfig:
        """The stage's settings."""
        ...

    @property
    def inputs(self) -> Mapping[str, str]:
        """Role to the stage name of an earlier bundle."""
        ...

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """The module to train, freshly initialised from torch's global random state."""
        ...

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Losses of one batch at optimizer step ``step`` (from 0)."""
        ...

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Metrics over the validation split; plain floats."""
        ...

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Image grids worth looking at: name to ``[B, C, H, W]`` in [-1, 1]; empty where there are none."""
        ...

    def export(self, module: nn.Module) -> Export:
        """What a bundle needs to rebuild the trained module."""
        ...
