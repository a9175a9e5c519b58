"""The plain loop: one process, no Ray, no DeepSpeed. What a unit test or a notebook trains with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.training.config import OptimizerConfig
from counterray.training.optimizer import make_optimizer, set_rates
from counterray.training.stage import Losses, Stage


def train(
    stage: Stage,
    *,
    data: DatasetInfo,
    batches: Callable[[], Iterable[Batch]],
    steps: int,
    learning_rate: float = 1e-3,
    optimizer: OptimizerConfig | None = None,
    inputs: Mapping[str, Bundle] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Trains ``stage`` with the optimizer that training on Ray uses.

    Args:
        stage: What to train.
        data: What the stage may know of the data.
        batches: Called at the start of each epoch; gives its batches.
        steps: Number of optimizer steps.
        learning_rate: Constant rate of an Adam without clipping; not read where ``optimizer`` is given.
        optimizer: Its settings, with schedule and clipping.
        inputs: Bundles of earlier stages by role.
        seed: Of torch's global random state.

    Returns:
        The trained module, in evaluation mode.

    Raises:
        FloatingPointError: If a loss is not finite, with the step and the part.
    """
    torch.manual_seed(seed)
    module = stage.build(inputs or {}, data)
    module.train()
    settings = optimizer or OptimizerConfig(lr=learning_rate, schedule="constant", clip_norm=0)
    adam = make_optimizer(stage, module, settings)
    for step, batch in zip(range(steps), repeat(batches), strict=False):
        losses = stage.loss(module, batch, step)
        require_finite(losses, step)
        set_rates(adam, stage, step, settings.rate(step, steps))
        adam.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        adam.step()
    return module.eval()


def repeat(batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Epoch after epoch, without end."""
    while True:
        yield from batches()


def require_finite(losses: Losses, step: int) -> None:
    """Raises if a loss is not finite.

    Raises:
        FloatingPointError: With the step and the names of the parts that are not finite.
    """
    if torch.isfinite(losses.total):
        return
    wrong = [name for name, value in losses.parts.items() if not torch.isfinite(value)] or ["total"]
    raise FloatingPointError(
        f"The loss is not finite at step {step}: {', '.join(sorted(wrong))}. Training stopped. Train "
        "anew into another --out with a lower optimizer.lr or a smaller optimizer.clip_norm."
    )
