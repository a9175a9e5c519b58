"""Structural assignments of the phantom's attributes, each exactly invertible.

Values lie on dyadic grids and noise is either added on the grid or read off a seed, so that abduction
followed by prediction gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from counterray.causal.mechanism import Values
from counterray.data.phantom.randomness import uniforms

SEVERITY_STEPS = 64
"""Severities are multiples of 1 / 64."""

LEAST_SEVERITY = 0.25
"""Severity of the mildest finding that is present [0 to 1]."""

AREA_STEPS = 256
"""Areas are multiples of 1 / 256 px^2."""


def _seeded(seeds: Tensor, stream: str) -> Tensor:
    return torch.from_numpy(uniforms(seeds.cpu().numpy(), stream, 1)[:, 0])


def _locate(uniform: Tensor, edges: Tensor) -> Tensor:
    """Index of the cell of ``edges`` ``[B, K + 1]`` that holds ``uniform`` ``[B]``."""
    return (uniform[:, None] >= edges[:, 1:-1]).sum(dim=1)


def _posterior(prior: Tensor, edges: Tensor, cell: Tensor, variable: str) -> Tensor:
    """A uniform number that falls into the observed ``cell``.

    The prior draw itself where it fits: it is the true noise of a drawn study. Elsewhere (an edited
    study) the prior draw scaled into the cell, which is a draw from the posterior.
    """
    low = edges.gather(1, cell[:, None])[:, 0]
    width = edges.gather(1, cell[:, None] + 1)[:, 0] - low
    if bool((width <= 0).any()):
        raise ValueError(f"Variable {variable!r} has an observed value of probability 0 under its parents.")
    return torch.where(_locate(prior, edges) == cell, prior, low + width * prior)


@dataclass(frozen=True)
class SeededCategory:
    """``value = cell of u in the cumulative probabilities``, with u uniform in [0, 1) read off a seed.

    Attributes:
        variable: Name of the variable, also of its random stream.
        shares: ``[G, K]`` probabilities of the K codes for each code of the parent ``given`` (G = 1 without).
        given: Parent that selects the row of ``shares``, or ``None``.
        seed: Parent that names the noise.
    """

    variable: str
    shares: Sequence[Sequence[float]]
    given: str | None
    seed: str

    def _edges(self, parents: Values) -> Tensor:
        table = torch.zeros(len(self.shares), len(self.shares[0]) + 1, dtype=torch.float64)
        table[:, 1:] = torch.tensor(self.shares, dtype=torch.float64).cumsum(dim=1)
        table[:, -1] = 1.0
        return table[
            parents[self.given].long() if self.given else torch.zeros_like(parents[self.seed]).long()
        ]

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Negative log-probability of the code, ``[B]`` [nats]; infinite where it cannot occur."""
        widths = self._edges(parents).diff(dim=1)
        return -widths.gather(1, value.long()[:, None])[:, 0].clamp(min=0).log()

    def abduct(self, value: Tensor, parents: Values) -> Tensor:
        """The uniform number behind an observed code, ``[B]``."""
        prior = _seeded(parents[self.seed], self.variable)
        return _posterior(prior, self._edges(parents), value.long(), self.variable)

    def predict(self, noise: Tensor, parents: Values) -> Tensor:
        """The code that ``noise`` gives, ``[B]`` float64."""
        return _locate(noise, self._edges(parents)).double()

    def draw(self, parents: Values) -> Tensor:
        """The code that the seed's own noise gives, ``[B]`` float64."""
        return self.predict(_seeded(parents[self.seed], self.variable), parents)

    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """A code under fresh noise, ``[B]`` float64."""
        rows = len(parents[self.seed])
        return self.predict(torch.rand(rows, generator=generator, dtype=torch.float64), parents)


@dataclass(frozen=True)
class SeededSeverity:
    """``severity = level if u < P(finding | parents) else 0``; u and level are read off the noise seed.

    Attributes:
        finding: Name of the finding.
        probability: ``(finding, parents) -> [B]``.
    """

    finding: str
    probability: Callable[[str, Values], Tensor]

    def _edges(self, parents: Values) -> Tensor:
        chance = self.probability(self.finding, parents)
        return torch.stack([torch.zeros_like(chance), chance, torch.ones_like(chance)], dim=1)

    def _prior(self, parents: Values) -> tuple[Tensor, Tensor]:
        seeds = parents["noise_seed"]
        return _seeded(seeds, f"presence.{self.finding}"), _level(_seeded(seeds, f"level.{self.finding}"))

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Negative log-probability of the severity, ``[B]`` [nats]; infinite off the grid of severities."""
        chance = self.probability(self.finding, parents)
        levels = round((1.0 - LEAST_SEVERITY) * SEVERITY_STEPS) + 1
        steps = value.double() * SEVERITY_STEPS
        possible = (steps == steps.round()) & (value >= LEAST_SEVERITY) & (value <= 1.0)
        present = torch.where(possible, chance / levels, torch.zeros_like(chance))
        return -torch.where(value == 0, 1.0 - chance, present).log()

    def abduct(self, value: Tensor, parents: Values) -> Tensor:
        """``[B, 2]``: the uniform number behind presence, and the level (the seed's where absent)."""
        uniform, level = self._prior(parents)
        present = value > 0
        cell = torch.where(present, 0, 1)
        uniform = _posterior(uniform, self._edges(parents), cell, f"severity.{self.finding}")
        return torch.stack([uniform, torch.where(present, value.double(), level)], dim=1)

    def predict(self, noise: Tensor, parents: Values) -> Tensor:
        """The severity that ``noise`` gives, ``[B]`` float64."""
        present = _locate(noise[:, 0], self._edges(parents)) == 0
        return torch.where(present, noise[:, 1], torch.zeros_like(noise[:, 1]))

    def draw(self, parents: Values) -> Tensor:
        """The severity that the seed's own noise gives, ``[B]`` float64."""
        return self.predict(torch.stack(self._prior(parents), dim=1), parents)

    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """A severity under fresh noise, ``[B]`` float64."""
        fresh = torch.rand(len(parents["age"]), 2, generator=generator, dtype=torch.float64)
        return self.predict(torch.stack([fresh[:, 0], _level(fresh[:, 1])], dim=1), parents)


def _level(uniform: Tensor) -> Tensor:
    levels = round((1.0 - LEAST_SEVERITY) * SEVERITY_STEPS) + 1
    return LEAST_SEVERITY + (uniform * levels).floor() / SEVERITY_STEPS


@dataclass(frozen=True)
class SteppedArea:
    """``area = mean(parents) + noise``, both on a grid of 1 / 256 px^2, so that the sum is exact.

    Attributes:
        region: Name of the region.
        mean: ``(region, parents) -> [B]`` mean as a fraction of the image.
        sd: Standard deviation of the noise as a fraction of the image.
        pixels: Number of pixels of the image.
    """

    region: str
    mean: Callable[[str, Values], Tensor]
    sd: float
    pixels: int

    def _stepped(self, fraction: Tensor) -> Tensor:
        return (fraction * self.pixels * AREA_STEPS).round() / AREA_STEPS

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Negative log-likelihood of the area under the normal law nearest to the noise's, ``[B]``."""
        sd = self.sd * self.pixels
        z = self.abduct(value, parents) / sd
        return 0.5 * z**2 + float(np.log(sd * (2.0 * np.pi) ** 0.5))

    def abduct(self, value: Tensor, parents: Values) -> Tensor:
        """The area's difference from its mean, ``[B]`` [px^2]."""
        return value.double() - self._stepped(self.mean(self.region, parents))

    def predict(self, noise: Tensor, parents: Values) -> Tensor:
        """The area that ``noise`` gives, ``[B]`` [px^2]."""
        return self._stepped(self.mean(self.region, parents)) + noise

    def from_standard(self, standard: Tensor, parents: Values) -> Tensor:
        """The area for noise of mean 0 and standard deviation 1, ``[B]`` [px^2]."""
        return self.predict(self._stepped(standard * self.sd), parents)

    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """An area under fresh noise, ``[B]`` [px^2]."""
        fresh = torch.rand(len(parents["age"]), 4, generator=generator, dtype=torch.float64)
        return self.from_standard((fresh.sum(dim=1) - 2.0) * 3.0**0.5, parents)
