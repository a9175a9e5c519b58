"""The one interface of causal image models: abduct, intervene, predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor

Values = Mapping[str, Tensor]
"""Variable name to ``[B, ...]``."""

Noise = Any
"""A mechanism's own exogenous state: a tensor or a tree of tensors."""


@runtime_checkable
class Mechanism(Protocol):
    """One structural assignment ``value = f(noise; parents)``.

    An image mechanism (a renderer, a VAE, a diffusion model) reads its parents (attributes, findings) by
    name and ignores names that it does not know. Images are ``[B, 1, H, W]`` in [-1, 1].
    Reference: Pawlowski et al., 2020, https://arxiv.org/abs/2006.06485, section 3.
    """

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Negative log-likelihood of ``value`` or a bound of it, ``[B]``."""
        ...

    def abduct(self, value: Tensor, parents: Values) -> Noise:
        """The noise that, with ``parents``, made ``value``."""
        ...

    def predict(self, noise: Noise, parents: Values) -> Tensor:
        """The value that ``noise`` gives under (other) ``parents``."""
        ...

    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """A value under fresh noise drawn with ``generator``."""
        ...
