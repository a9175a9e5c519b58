"""Optimises initial noise so that rare findings come out: a few references in place of training data.

Reference: Nie et al., Causal Disentanglement for Robust Long-tail Medical Image Generation, algorithm 2 and
equations 17 and 18.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from counterray.config import Config
from counterray.diffusion.denoiser import Denoiser
from counterray.diffusion.drift import Drift
from counterray.diffusion.guidance import guided
from counterray.diffusion.sampling import SamplerConfig, advance, predict, scheduler_for
from counterray.diffusion.schedule import Sampler, ScheduleConfig, predicted_noise
from counterray.diffusion.targets import TargetChoice
from counterray.nn.text import TextStates

Features = Callable[[Tensor, Tensor], Tensor]
"""Latents z_0 ``[A, C, h, w]`` of the samples ``rows`` (``[A]`` long, places in the whole batch) to features
``[A, D]``: decoder and judge, both frozen. The rows say whose anatomy each latent is decoded with, as samples
that have converged are left out."""


class NoiseOptimisationConfig(Config):
    """How initial noise is optimised."""

    mode: Literal["straight_through", "full", "one_step", "algorithm_2"] = "straight_through"
    """How z_0 is had from z_T, and what its gradient passes through. ``straight_through``: DDIM of few steps,
    the gradient through the last network call and the linear path before it; ``full``: through all calls, at
    ``steps`` times the memory; ``one_step``: DDIM of one step; ``algorithm_2``: z_T - ε̂ as printed, which is
    no image of the sampler's."""
    steps: int = Field(default=4, ge=1)
    """DDIM steps of ``straight_through`` and ``full``."""
    learning_rate: float = Field(default=0.2, gt=0)
    """Adam's step, in standard deviations of the noise. 0.2 did best, or nearly so, on mixtures of Gaussians
    among 0.03 to 0.5; below, more samples stop in a local minimum."""
    iterations: int = Field(default=40, ge=1)
    """Evaluations of the objective for a sample at most."""
    patience: int = Field(default=5, ge=1)
    """Evaluations in a row without a fall of the objective after which a sample has converged."""
    targets: TargetChoice = "reference"
    """What each sample is drawn to, see `targets_for`."""
    repulsion: float = Field(default=0.0, ge=0)
    """Weight of the repulsion between samples, see `optimise_noise`; with it the samples of a batch depend on
    each other."""


@dataclass(frozen=True)
class OptimisedNoise:
    """Outcome of `optimise_noise`.

    Attributes:
        noise: ``[B, C, h, w]`` float32, z_T before any drift, for `sample`.
        start: ``[B]`` distance to the target before, of the mode's own z_0.
        end: ``[B]`` the same after; see `target_distance` for the one to report.
        iterations: ``[B]`` long, evaluations spent on each sample.
        converged: ``[B]`` bool, whether patience ended it rather than the limit of iterations.
    """

    noise: Tensor
    start: Tensor
    end: Tensor
    iterations: Tensor
    converged: Tensor


def optimise_noise(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    config: NoiseOptimisationConfig,
    condition: TextStates | None,
    *,
    noise: Tensor,
    targets: Tensor,
    features: Features,
    null: TextStates | None = None,
    drift: Drift | None = None,
    spread: Tensor | None = None,
) -> OptimisedNoise:
    """Minimises ‖μ_i - E(z_0(z_T,i))‖² over each z_T with Adam, on the shell ‖z_T‖ = sqrt(C h w).

    With repulsion λ, sample i also minimises λ s mean_{j ≠ i} exp(-‖E_i - E_j‖² / s), s = ``spread`` and E_j
    held fixed. Each sample stops by itself and then leaves the batch; the noise returned is the best it saw.
    Only z_T gets a gradient; for the memory's sake the caller also sets the weights' ``requires_grad`` to
    false.

    Args:
        denoiser: The network, without guidance.
        schedule: The schedule that it was trained on.
        sampler: The sampler that will draw the final latents; its guidance is used here, too.
        config: How to optimise.
        condition: B texts' states, on the noise's device, or ``None``.
        noise: z_T to start from ``[B, C, h, w]``.
        targets: μ_i ``[B, D]``, see `targets_for`.
        features: E.
        null: The null condition of guidance, one row or B.
        drift: The drift that sampling will have.
        spread: s, see `typical_spread`; repulsion needs it.

    Raises:
        ValueError: If repulsion lacks a spread, or features and targets differ in shape.
    """
    if config.repulsion and spread is None:
        raise ValueError("repulsion needs the references' typical_spread; give it or set repulsion: 0.")
    scheduler = _scheduler(schedule, config, drift)
    size = len(noise)
    # One parameter a sample: Adam then leaves the converged ones, which get no gradient, as they are.
    samples = [row.detach().float().clone().requires_grad_() for row in noise]
    adam = torch.optim.Adam(samples, lr=config.learning_rate)
    best = noise.detach().float().clone()
    state = _Progress.start(size, noise.device)
    latest: Tensor | None = None  # features of every sample, at its last evaluation
    for iteration in range(config.iterations):
        active = torch.nonzero(~state.converged).flatten()
        if not len(active):
            break
        current = torch.stack([samples[index] for index in active.tolist()])
        chosen = None if condition is None else condition[active]
        own_null = null[active] if null is not None and len(null) == size > 1 else null
        network = guided(denoiser, chosen, own_null, sampler.guidance_scale)
        found = features(_final_latents(network, scheduler, config, current, chosen), active).float()
        squared = _squared_distance(found, targets[active])
        objective = squared
        if config.repulsion and spread is not None:
            latest = (
                found.detach().clone() if latest is None else latest.index_copy(0, active, found.detach())
            )
            objective = squared + config.repulsion * _repulsion(found, latest, active, spread)
        improved = state.update(active, objective.detach(), squared.detach().sqrt(), config.patience)
        best[active[improved]] = current.detach()[improved]
        if iteration + 1 < config.iterations:
            _descend(adam, samples, active, torch.autograd.grad(objective.sum(), current)[0], state.converged)
    return OptimisedNoise(best, state.start_distance, state.distance, state.iterations, state.converged)


@dataclass
class _Progress:
    """Where each sample stands; all ``[B]``."""

    objective: Tensor
    distance: Tensor
    start_distance: Tensor
    stale: Tensor
    iterations: Tensor
    converged: Tensor

    @classmethod
    def start(cls, size: int, device: torch.device) -> _Progress:
        infinite = torch.full((size,), torch.inf, device=device)
        zeros = torch.zeros(size, dtype=torch.long, device=device)
        return cls(infinite, infinite.clone(), infinite.clone(), zeros, zeros.clone(), zeros.bool())

    def update(self, active: Tensor, objective: Tensor, distance: Tensor, patience: int) -> Tensor:
        """Takes in an evaluation of the ``active`` samples and returns which of them improved."""
        first = self.iterations[active] == 0
        self.start_distance[active] = torch.where(first, distance, self.start_distance[active])
        improved = objective < self.objective[active]
        self.objective[active] = torch.where(improved, objective, self.objective[active])
        self.distance[active] = torch.where(improved, distance, self.distance[active])
        self.stale[active] = torch.where(improved, 0, self.stale[active] + 1)
        self.iterations[active] += 1
        self.converged[active] = self.stale[active] >= patience
        return improved


def _scheduler(schedule: ScheduleConfig, config: NoiseOptimisationConfig, drift: Drift | None) -> Sampler:
    steps = config.steps if config.mode in ("straight_through", "full") else 1
    return scheduler_for(schedule, SamplerConfig(scheduler="ddim", steps=steps), drift)


def _final_latents(
    network: Denoiser,
    scheduler: Sampler,
    config: NoiseOptimisationConfig,
    noise: Tensor,
    condition: TextStates | None,
) -> Tensor:
    """z_0 as the mode has it, differentiable in the noise."""
    *earlier, last = scheduler.timesteps.tolist()
    latents = noise
    for timestep in earlier:
        with torch.set_grad_enabled(config.mode == "full"):
            output = predict(network, scheduler, latents, timestep, condition)
        latents = advance(scheduler, output, timestep, latents)
    output = predict(network, scheduler, latents, last, condition)
    if config.mode == "algorithm_2":
        start = scheduler.scale_model_input(latents, last)
        return start - predicted_noise(scheduler, output, start, last)
    return advance(scheduler, output, last, latents)


def _squared_distance(found: Tensor, targets: Tensor) -> Tensor:
    if found.shape != targets.shape:
        raise ValueError(
            f"The features {list(found.shape)} and the targets {list(targets.shape)} differ in shape; make "
            "both with the same judge, one target a sample."
        )
    return (found - targets.float()).square().sum(dim=1)


def _repulsion(found: Tensor, latest: Tensor, active: Tensor, spread: Tensor) -> Tensor:
    """Repulsion s mean_{j ≠ i} exp(-‖E_i - E_j‖² / s) of each active i, ``[A]``; 0 for a sample alone."""
    squared = (found[:, None] - latest[None]).square().sum(dim=2)
    others = torch.arange(len(latest), device=active.device)[None] != active[:, None]
    return spread * (torch.exp(-squared / spread) * others).sum(dim=1) / max(len(latest) - 1, 1)


def _descend(
    adam: torch.optim.Adam, samples: list[Tensor], active: Tensor, gradient: Tensor, converged: Tensor
) -> None:
    """One step of Adam for the samples that go on, back onto the shell where Gaussian noise lies."""
    adam.zero_grad(set_to_none=True)
    stopped = converged.tolist()
    going = [index for index in active.tolist() if not stopped[index]]
    for index, row in zip(active.tolist(), gradient, strict=True):
        samples[index].grad = None if stopped[index] else row
    adam.step()
    with torch.no_grad():
        for index in going:
            samples[index].mul_(samples[index].numel() ** 0.5 / samples[index].norm())
