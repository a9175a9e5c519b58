"""The DeepSpeed engine around a stage: one configuration for CPU and GPU, ZeRO 0 to 3, fp32 and bf16."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterray.data.study import Batch
from counterray.training.config import TrainingConfig
from counterray.training.optimizer import make_optimizer, set_rates
from counterray.training.stage import Losses, Stage

logger = logging.getLogger(__name__)

TAG = "engine"
"""DeepSpeed's name of the state inside a checkpoint folder."""


class StageModule(nn.Module):
    """A stage's loss as a module's forward, so that DeepSpeed's hooks see every step.

    Args:
        stage: The stage, built.
        module: What `Stage.build` returned.
    """

    def __init__(self, stage: Stage, module: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.module = module

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss, and its parts detached."""
        losses = self.stage.loss(self.module, batch, step)
        return losses.total, {name: value.detach() for name, value in losses.parts.items()}


class Engine:
    """A stage's module under DeepSpeed.

    Args:
        stage: The stage, built.
        module: What `Stage.build` returned, on the CPU.
        config: The run's settings.
        device: Where this rank computes.
        universal: Whether the state to load was saved by another number of workers: ZeRO shards are bound
            to theirs, and are rewritten in DeepSpeed's universal format before they are read.
    """

    def __init__(
        self,
        stage: Stage,
        module: nn.Module,
        config: TrainingConfig,
        device: torch.device,
        *,
        universal: bool = False,
    ) -> None:
        deepspeed = _import_deepspeed()
        if device.type == "cpu":
            # The probe of DeepSpeed's operators compiles a shared-memory collective with g++ on first use,
            # and a worker killed meanwhile leaves a lock that blocks the next; gloo needs none of them.
            deepspeed.ops.__compatible_ops__ = {}
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.config = config
        self.module = module
        self.universal = universal
        self.stage = stage
        self.engine, _, _, _ = deepspeed.initialize(
            model=StageModule(stage, module).to(device),
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            optimizer=make_optimizer(stage, module, config.optimizer),
            config=engine_settings(config, universal=universal),
            dist_init_required=False,
        )

    def micro_step(self, batch: Batch, step: int) -> Losses:
        """Forward and backward of one micro-batch; the optimizer steps at the accumulation boundary.

        The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
        """
        rate = self.config.optimizer.rate(step, self.config.steps)
        set_rates(self.engine.optimizer, self.stage, step, rate)
        total, parts = self.engine(batch, step)
        self.engine.backward(total)
        self.engine.step()
        return Losses(total.detach(), parts)

    @contextmanager
    def whole_weights(self) -> Iterator[dict[str, Tensor]]:
        """Name to the whole parameter or buffer, gathered where ZeRO 3 shards it; on every rank.

        The tensors are those that the forward uses (bf16 where the engine is) and die with the context.
        """
        import deepspeed

        if self.config.engine.zero_stage < 3:
            yield self._named()
            return
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield self._named()

    def master_weights(self) -> dict[str, Tensor]:
        """Copies of the fp32 weights and of the buffers, on the CPU. A collective: all ranks call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            value = safe_get_full_fp32_param(parameter)
            weights[name] = _copy(parameter.data if value is None else value)
        for name, buffer in self.module.named_buffers():
            weights[name] = _copy(buffer)
        return {name: weights[name] for name in self._state_names()}

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the engine's state under ``folder``; all ranks call it."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restores the engine's state; from another number of workers if made with ``universal``.

        Raises:
            RuntimeError: If the folder holds no such state.
        """
        if not self.universal:
            self._load(folder, TAG)
            return
        first_on_node = int(os.environ.get("LOCAL_RANK", "0")) == 0
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        rewritten = Path(tempfile.gettempdir()) / f"counterray-universal-{name}"
        if first_on_node:
            shutil.rmtree(rewritten, ignore_errors=True)
            convert_to_universal(folder / TAG, rewritten / TAG, zero_stage=self.config.engine.zero_stage)
        torch.distributed.barrier()
        self._load(rewritten, TAG)
        torch.distributed.barrier()
        if first_on_node:
            shutil.rmtree(rewritten)
        # Saving ZeRO 3 with this flag still on writes a checkpoint that cannot be read (DeepSpeed#7546).
        self.engine._config.load_universal_checkpoint = False

    def _load(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no state {tag!r} in the checkpoint; it is incomplete.")

    def _named(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.module.state_dict(keep_vars=True).items()}

    def _state_names(self) -> list[str]:
        return list(self.module.state_dict())


def engine_settings(config: TrainingConfig, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run's settings."""
    engine = config.engine
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": engine.gradient_accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "checkpoint": {"load_universal": universal},
    }


def convert_to_universal(source: Path, target: Path, *, zero_stage: int) -> None:
    """Rewrites a ZeRO checkpoint for any number of workers (DeepSpeed's ``ds_to_universal``).

    Raises:
        RuntimeError: If the conversion fails, with the last lines of its output.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--inject_missing_state"] if zero_stage < 3 else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise RuntimeError(f"The checkpoint of another number of workers could not be converted: {tail}")


def _copy(value: Tensor) -> Tensor:
    copied = value.detach().to("cpu", copy=True)
    return copied.float() if copied.is_floating_point() else copied


def state_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fp32 copies of whole weights on the CPU."""
    return {name: _copy(value) for name, value in weights.items()}


def _import_deepspeed() -> Any:
    """DeepSpeed without MLflow, which its autotuner, unused here, imports for 2 s of each worker's start."""
    if "deepspeed" not in sys.modules and "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # how an import is made to fail
        try:
            import deepspeed.ops
        finally:
            del sys.modules["mlflow"]
    import deepspeed.ops

    return deepspeed
