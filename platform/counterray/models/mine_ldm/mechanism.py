"""Models that set attributes as an image `Mechanism`: abduct, intervene on an attribute, predict."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from counterray.causal.mechanism import Values
from counterray.models.mine_ldm.model import AttributeModel, AttributeNoise


class AttributeMechanism:
    """Implements `Mechanism`. Parents are the model's attributes; all others are ignored.

    The null intervention takes the same path as any other: what the model does to an image by itself is in
    both, so that a difference between them is the attribute's.

    Args:
        model: A trained model.
        seed: Of fresh noise. Every row takes the same, so that no row depends on those beside it.
    """

    def __init__(self, model: AttributeModel, *, seed: int = 0) -> None:
        self.model, self.seed = model, seed

    @torch.no_grad()
    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """A bound of the negative log-likelihood, ``[B]`` [nats]; see the model's ``bound``."""
        value = value.to(self.model.device)
        return self.model.bound(value, self._codes(parents, value))

    @torch.no_grad()
    def abduct(self, value: Tensor, parents: Values) -> AttributeNoise:
        """The noise of images ``[B, 1, H, W]``, and the attributes that they show."""
        value = value.to(self.model.device)
        return self.model.abduct(value, self._codes(parents, value))

    @torch.no_grad()
    def predict(self, noise: AttributeNoise, parents: Values) -> Tensor:
        """The images ``[B, 1, H, W]`` in [-1, 1] of ``noise`` under ``parents``.

        An attribute that ``parents`` do not give stays as it was observed.
        """
        asked = self._codes(parents, noise.latent)
        seeds = torch.full((len(asked),), self.seed)
        return self.model.render(noise, torch.where(asked.isnan(), noise.codes, asked), seeds=seeds)

    @torch.no_grad()
    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1] of nobody's with the attributes of ``parents``.

        Raises:
            ValueError: If there is no parent, from whose rows the batch size is taken.
        """
        if not parents:
            raise ValueError("sample needs at least one parent, from whose rows it takes the batch size.")
        like = next(iter(parents.values())).to(self.model.device)
        return self.model.draw(self._codes(parents, like), generator)

    def _codes(self, parents: Values, like: Tensor) -> Tensor:
        return self.model.space.codes(parents, like=like)
