"""Settings of a training run, the same on one CPU and on many GPUs."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from counterray.config import Config
from counterray.data.batching import LoaderConfig


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) and its schedule."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 switches clipping off."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a half cosine down to ``final_lr_fraction``."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Fraction of ``lr`` at the last step of the cosine."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at optimizer step ``step`` (from 0) of ``steps``."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine)


class EngineConfig(Config):
    """What DeepSpeed does (Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054)."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is sharded over workers: nothing, optimizer state, also gradients, also parameters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward; bf16 keeps fp32 master weights."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""

    @model_validator(mode="after")
    def _bf16_needs_sharding(self) -> EngineConfig:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "engine.precision bf16 needs engine.zero_stage >= 1, whose optimizer holds the fp32 master "
                "weights; with one worker, ZeRO 1 shards nothing and costs nothing"
            )
        return self


class ResourcesConfig(Config):
    """Where a run runs."""

    workers: int = Field(default=1, ge=1)
    """Training processes: ranks."""
    gpu: bool = False
    """One GPU per worker, or the CPU."""
    accelerator_type: str | None = None
    """Ray's name of the GPU to ask for, such as ``A100``."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for a worker; what is left over, one at least, decodes images."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch's CPU operators in a worker."""
    data_cpus: float | None = Field(default=None, gt=0)
    """CPUs that may decode a worker's images at a time; all that are free by default."""
    max_failures: int = Field(default=2, ge=0)
    """Times that lost workers are replaced; each costs at most the steps since the last checkpoint."""

    @property
    def cpus(self) -> float:
        """CPUs that Ray reserves for all workers."""
        return self.workers * self.cpus_per_worker


class CheckpointConfig(Config):
    """When a run validates and saves, and what it keeps."""

    every_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two validations with checkpoint."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept: the best ones by the stage's monitored metric; the newest is always kept."""
    validation_studies: int = Field(default=2048, ge=1)
    """Studies of the validation split that a validation uses at most."""
    patience: int = Field(default=0, ge=0)
    """Validations without a better monitored metric after which training stops early; 0 never does."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes the bundle."""


class TrainingConfig(Config):
    """What every stage's configuration has beside the stage's own settings."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps of the whole run."""
    batch_size: int = Field(default=32, ge=1)
    """Studies per micro-batch and worker."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, data order and noise."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the weights' exponential moving average, which is what validates and exports; 0 is off."""
    log_every_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two lines in ``metrics.jsonl``."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Role to the bundle (folder or s3:// URI) of an earlier stage."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    mlflow: bool = False
    """Also log metrics to the MLflow server of ``MLFLOW_TRACKING_URI`` (extra ``[mlflow]``)."""
