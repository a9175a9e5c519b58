"""The optimizer of a stage: AdamW in which groups of parameters may take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from counterray.training.config import OptimizerConfig
from counterray.training.stage import Stage


@runtime_checkable
class Alternating(Protocol):
    """What a `Stage` adds whose parts are trained in turns, such as a critic and what it criticises."""

    def parts(self, module: nn.Module) -> Mapping[str, Sequence[nn.Parameter]]:
        """Name of each part to its parameters; together all that are trained."""
        ...

    def turn(self, step: int) -> str:
        """The part that optimizer step ``step`` (from 0) changes; all others stay as they are."""
        ...


class TurnAdamW(torch.optim.AdamW):
    """AdamW whose groups of rate 0 sit a step out.

    Neither their weights nor their moments change. In the stock optimizer a gradient of zero, which engines
    that reduce gradients over workers put in the place of none, still moves weights by the first moment and
    fades both.
    Reference: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of the groups whose rate is not 0."""
        for group in self.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        return super().step(closure)


def make_optimizer(stage: Stage, module: nn.Module, config: OptimizerConfig) -> TurnAdamW:
    """The optimizer of what a stage trains, with a group for each of its parts."""
    parts = stage.parts(module) if isinstance(stage, Alternating) else {"": list(module.parameters())}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.requires_grad], "part": name}
        for name, parameters in parts.items()
    ]
    return TurnAdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def set_rates(optimizer: Any, stage: Stage, step: int, rate: float) -> None:
    """Gives ``rate`` to the groups whose turn it is at optimizer step ``step``, and 0 to the others."""
    turn = stage.turn(step) if isinstance(stage, Alternating) else None
    for group in optimizer.param_groups:
        group["lr"] = rate if turn is None or group["part"] == turn else 0.0
