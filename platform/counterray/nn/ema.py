"""Exponential moving average of a model's tensors, kept in float32 beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_UPDATES = "ema.updates"


class EMA:
    """Moving average ``a <- d a + (1 - d) p`` of named tensors, with bias removed by warm-up.

    The rate rises as ``d_t = min(decay, (1 + t) / (10 + t))`` with the number ``t`` of updates, so that a
    short training is not an average with the initial weights. It is given a mapping rather than a module,
    so that float32 master copies of a sharded engine can be averaged as they are.
    Reference: the rate is that of TensorFlow's ``ExponentialMovingAverage(num_updates)``.

    Args:
        parameters: Name to tensor, the starting point; copied in float32. Integer tensors are not averaged
            but copied at each update.
        decay: Upper limit of the rate ``d``, in [0, 1).

    Raises:
        ValueError: If ``decay`` is outside [0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema.decay = {decay} is outside [0, 1); 0 switches averaging off.")
        self.decay = decay
        self.updates = 0
        self.average = {name: _copy(value) for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Moves the average towards ``parameters``.

        Raises:
            KeyError: If the names are not those that the average was made with.
        """
        self._require_names(parameters)
        rate = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            current = parameters[name].detach()
            if average.is_floating_point():
                average.lerp_(current.to(average), 1.0 - rate)
            else:
                average.copy_(current)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrites ``parameters`` with the average, in their own type and place.

        Raises:
            KeyError: If the names are not those that the average was made with.
        """
        self._require_names(parameters)
        for name, average in self.average.items():
            parameters[name].copy_(average)

    @contextmanager
    def applied_to(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """``parameters`` hold the average inside the context and their own values, bitwise, after it."""
        own = {name: value.detach().clone() for name, value in parameters.items()}
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, and the number of updates as ``ema.updates``."""
        return {**self.average, _UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state_dict`; further updates continue exactly.

        Raises:
            KeyError: If the names are not those that the average was made with.
        """
        self._require_names({name: value for name, value in state.items() if name != _UPDATES})
        for name, average in self.average.items():
            average.copy_(state[name])
        self.updates = int(state[_UPDATES])

    def _require_names(self, parameters: Mapping[str, Tensor]) -> None:
        if differing := sorted(self.average.keys() ^ parameters.keys()):
            raise KeyError(
                f"The average holds {len(self.average)} tensors and was given {len(parameters)}; these are "
                f"on one side only: {', '.join(differing[:5])}. Give the mapping it was made with."
            )


def _copy(value: Tensor) -> Tensor:
    copy = value.detach().clone()
    return copy.float() if copy.is_floating_point() else copy
