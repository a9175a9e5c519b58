"""The regressions of CIT-LR: small networks, one for each classifier of a pool, fitted side by side.

Letters: T = networks (classifiers of the pool), n = rows, D = features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from counterray.config import Config


class NuisanceConfig(Config):
    """A network and its training; the defaults are the published ones."""

    hidden: tuple[int, ...] = (16, 8, 8)
    """Widths of the hidden layers, ReLU between them, one sigmoid at the end."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of Adam."""
    epochs: int = Field(default=1000, ge=1)
    """Full-batch steps at most."""
    patience: int | None = Field(default=None, ge=1)
    """Steps without a better validation loss after which a network stops; ``None`` trains to the end."""
    validation: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows that tell when to stop, where ``patience`` is set."""


class Networks:
    """T networks with the same inputs.

    Args:
        weights: One tensor ``[T, in, out]`` for each layer.
        biases: One tensor ``[T, 1, out]`` for each layer.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.weights, self.biases = list(weights), list(biases)

    @property
    def parameters(self) -> list[Tensor]:
        """All of them; the first axis is the network."""
        return [*self.weights, *self.biases]

    def logits(self, inputs: Tensor) -> Tensor:
        """``[T, n]`` for inputs ``[n, D]``."""
        hidden = inputs.expand(len(self.weights[0]), *inputs.shape)
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden.relu() if depth else hidden, weight)
        return hidden.squeeze(-1)

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """``[T, n]``."""
        return self.logits(inputs).sigmoid()


def fit_networks(inputs: Tensor, targets: Tensor, config: NuisanceConfig, *, seed: int) -> Networks:
    """Fits ``E[target | inputs]`` by cross-entropy, full batch, each network on its own targets.

    Every network is what it would be if it were trained alone: Adam works element by element, and the losses
    are summed over networks.

    Args:
        inputs: ``[n, D]`` float.
        targets: ``[T, n]`` in [0, 1].
        config: Network and training.
        seed: Of the initial weights and of the rows kept for validation.
    """
    generator = torch.Generator().manual_seed(seed)
    networks = _initial(len(targets), inputs.shape[1], config.hidden, generator)
    held = None
    if config.patience is not None:
        order = torch.randperm(len(inputs), generator=generator)
        cut = max(1, round(config.validation * len(inputs)))
        held = inputs[order[:cut]], targets[:, order[:cut]]
        inputs, targets = inputs[order[cut:]], targets[:, order[cut:]]
    optimizer = torch.optim.Adam(
        networks.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    stopping = _EarlyStopping(networks, config.patience)
    for _ in range(config.epochs):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(networks.logits(inputs), targets, reduction="none")
        loss.mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if held is not None and stopping.is_over(networks, *held):
            break
    return stopping.best if held is not None else networks


class _EarlyStopping:
    """Keeps each network's best weights by its own validation loss."""

    def __init__(self, networks: Networks, patience: int | None) -> None:
        self.patience = patience
        layers = len(networks.weights)
        copies = [part.detach().clone() for part in networks.parameters]
        self.best = Networks(copies[:layers], copies[layers:])
        self.loss = torch.full((len(copies[0]),), math.inf)
        self.waited = torch.zeros(len(copies[0]))

    @torch.no_grad()
    def is_over(self, networks: Networks, inputs: Tensor, targets: Tensor) -> bool:
        """Looks at the weights after a step; true once every network has waited for too long."""
        assert self.patience is not None
        losses = binary_cross_entropy_with_logits(networks.logits(inputs), targets, reduction="none")
        current = losses.mean(dim=1)
        # A network that has stopped stays stopped, as it would alone.
        better = (current < self.loss) & (self.waited < self.patience)
        for kept, part in zip(self.best.parameters, networks.parameters, strict=True):
            kept[better] = part[better]
        self.loss = torch.where(better, current, self.loss)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        return bool((self.waited >= self.patience).all())


def _initial(count: int, width: int, hidden: Sequence[int], generator: torch.Generator) -> Networks:
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for before, after in pairwise((width, *hidden, 1)):
        bound = 1 / math.sqrt(before)  # torch.nn.Linear's
        for store, shape in ((weights, (count, before, after)), (biases, (count, 1, after))):
            drawn = torch.rand(shape, generator=generator) * (2 * bound) - bound
            store.append(drawn.requires_grad_())
    return Networks(weights, biases)
