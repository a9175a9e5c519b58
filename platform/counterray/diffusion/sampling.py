"""Noise to latents: the same seed, condition and weights give the same latent whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from pydantic import Field, model_validator
from torch import Generator, Tensor

from counterray.config import Config
from counterray.diffusion.denoiser import Denoiser as Denoiser
from counterray.diffusion.drift import Drift, drifted
from counterray.diffusion.guidance import guided
from counterray.diffusion.schedule import (
    Sampler,
    SamplerName,
    ScheduleConfig,
    predicted_clean,
    sampling_scheduler,
    training_scheduler,
)
from counterray.nn.text import TextStates

OnStep = Callable[[int, int, Callable[[], Tensor]], None]
"""Called after each network call of a sampling with its number, from 1, how many there are, and a function
that gives what the sampler by then takes for the result. What it raises ends the sampling."""


class SamplerConfig(Config):
    """How latents are drawn."""

    scheduler: SamplerName = "ddim"
    """``ddim``, ``dpm_solver`` (DPM-Solver++, for few steps) or ``ddpm`` (stochastic, for many)."""
    steps: int = Field(default=50, ge=1)
    """Network calls of one sampling."""
    guidance_scale: float = Field(default=3.0, ge=0)
    """Weight of the condition, see `Guided`; 1 is no guidance."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Fresh noise in each step of ``ddim``: 0 none, 1 as much as ``ddpm``."""

    @model_validator(mode="after")
    def _eta_of_ddim(self) -> SamplerConfig:
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta = {self.eta} is a setting of ddim; {self.scheduler} takes 0 only")
        return self

    def replaced(self, *, steps: int | None, guidance: float | None) -> SamplerConfig:
        """The same with other steps, another scale of guidance, or both.

        Raises:
            ValueError: If one is out of its range.
        """
        given = {"steps": steps, "guidance_scale": guidance}
        return SamplerConfig(**(self.model_dump() | {n: v for n, v in given.items() if v is not None}))

    @property
    def stochastic(self) -> bool:
        """Whether a sampling draws noise after the initial one."""
        return self.scheduler == "ddpm" or self.eta > 0


def initial_noise(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise ``[B, *shape]``, float32 on the CPU, each row from its own seed.

    Args:
        seeds: ``[B]`` long.
        shape: (C, h, w) of a latent.
    """
    return _draw(_generators(seeds), shape)


def sample(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    condition: TextStates | None,
    *,
    noise: Tensor,
    seeds: Tensor | None = None,
    null: TextStates | None = None,
    drift: Drift | None = None,
    start: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents z_0 from noise, or from latents that are noisy in part.

    Args:
        denoiser: The network, without guidance.
        schedule: The schedule that it was trained on.
        sampler: How to draw.
        condition: B texts' states, on the noise's device, or ``None``.
        noise: ``[B, C, h, w]`` on the device to compute on: `initial_noise` or an optimised one.
        seeds: ``[B]`` long, for samplers that draw noise in each step: each sample then has a stream of its
            own, which goes on where `initial_noise` with the same seed ended.
        null: The null condition of guidance, one row or B.
        drift: Its reverse part is applied; ``None`` is the stock scheduler.
        start: Of the sampler's timesteps only those below this one are run, and ``noise`` is what `noised`
            or `invert` made for it; all of them where ``None``.
        on_step: Told of the network calls and of z_0 as predicted by then.

    Returns:
        ``[B, C, h, w]`` float32; the schedule's arithmetic is float32 whatever the network's type.

    Raises:
        ValueError: If guidance lacks a condition or a null condition, a stochastic sampler lacks seeds, or
            the sampler cannot begin at ``start``.
    """
    scheduler = scheduler_for(schedule, sampler, drift)
    options: dict[str, Any] = {"eta": sampler.eta} if sampler.eta else {}
    if sampler.stochastic:
        if seeds is None or len(seeds) != len(noise):
            given = "none" if seeds is None else len(seeds)
            raise ValueError(
                f"The sampler {sampler.scheduler} draws noise in each step and needs a seed for each of the "
                f"{len(noise)} samples, got {given}; or take ddim with eta: 0, or dpm_solver."
            )
        options["generator"] = _generators(seeds)
        _draw(options["generator"], noise.shape[1:])  # the numbers that `initial_noise` has used
    with torch.no_grad():
        latents = noise.float()
        network = guided(denoiser, condition, null, sampler.guidance_scale)
        timesteps = timesteps_below(scheduler, start)
        for number, timestep in enumerate(timesteps, start=1):
            output = predict(network, scheduler, latents, timestep, condition)
            if on_step is not None:
                clean = partial(predicted_clean, scheduler, output, latents, timestep)
                on_step(number, len(timesteps), clean)
            latents = advance(scheduler, output, timestep, latents, **options)
    return latents


def noised(
    schedule: ScheduleConfig, sampler: SamplerConfig, latents: Tensor, *, noise: Tensor, start: int
) -> Tensor:
    """Latents as noisy as `sample` with this ``start`` takes them: a_s z_0 + b_s ε at its first timestep s.

    Reference: Meng et al., 2022, https://arxiv.org/abs/2108.01073, section 3.

    Args:
        schedule: The schedule that the network was trained on.
        sampler: How `sample` will draw.
        latents: z_0 ``[B, C, h, w]``.
        noise: ε ``[B, C, h, w]``, standard normal.
        start: See `sample`.

    Raises:
        ValueError: If the sampler cannot begin there.
    """
    scheduler = scheduler_for(schedule, sampler, None)
    first = timesteps_below(scheduler, start)[0]
    timesteps = torch.full((len(latents),), first, dtype=torch.int, device=latents.device)
    return training_scheduler(schedule).add_noise(
        latents.float(), noise.to(latents), cast(torch.IntTensor, timesteps)
    )


def timesteps_below(scheduler: Sampler, start: int | None) -> list[int]:
    """The scheduler's timesteps below ``start``, noisiest first; all of them where ``None``.

    Raises:
        ValueError: If there is none, or the scheduler's steps depend on those before them.
    """
    timesteps: list[int] = scheduler.timesteps.tolist()
    if start is None:
        return timesteps
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        raise ValueError(
            f"start = {start}: dpm_solver's steps build on those before them, so it cannot begin in between; "
            "take the sampler ddim or ddpm."
        )
    below = [timestep for timestep in timesteps if timestep < start]
    if not below:
        raise ValueError(
            f"start = {start} is below the sampler's last timestep, {timesteps[-1]}: nothing would be drawn. "
            "Raise start or the sampler's steps."
        )
    return below


def scheduler_for(schedule: ScheduleConfig, sampler: SamplerConfig, drift: Drift | None) -> Sampler:
    """The sampler's scheduler, drifted where there is a drift."""
    scheduler = sampling_scheduler(schedule, sampler.scheduler, sampler.steps)
    return scheduler if drift is None else drifted(scheduler, drift)


def predict(
    denoiser: Denoiser, scheduler: Sampler, latents: Tensor, timestep: int, condition: TextStates | None
) -> Tensor:
    """The network's output (float32) for latents that all are at one timestep."""
    noisy = scheduler.scale_model_input(latents, timestep)
    timesteps = torch.full((len(latents),), timestep, dtype=torch.long, device=latents.device)
    return denoiser(noisy, timesteps, condition).float()


def advance(scheduler: Sampler, output: Tensor, timestep: int, latents: Tensor, **options: Any) -> Tensor:
    """The latents at the next timestep, differentiable in ``output`` and ``latents``."""
    return cast(Tensor, scheduler.step(output, timestep, latents, return_dict=False, **options)[0])


def seen_as(on_step: OnStep, decode: Callable[[Tensor], Tensor]) -> OnStep:
    """``on_step`` of what ``decode`` makes of the latents."""

    def told(number: int, count: int, latents: Callable[[], Tensor]) -> None:
        on_step(number, count, lambda: decode(latents()))

    return told


def _generators(seeds: Tensor) -> list[Generator]:
    return [Generator().manual_seed(int(seed)) for seed in seeds]


def _draw(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
