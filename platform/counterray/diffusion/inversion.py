"""DDIM inversion: the noise from which a sampler would draw given latents."""

from __future__ import annotations

import torch
from torch import Tensor

from counterray.diffusion.denoiser import Denoiser
from counterray.diffusion.drift import Drift
from counterray.diffusion.guidance import guided
from counterray.diffusion.sampling import SamplerConfig, timesteps_below
from counterray.diffusion.schedule import ScheduleConfig, ddim_coefficients, sampling_scheduler
from counterray.nn.text import TextStates


def invert(
    denoiser: Denoiser,
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    condition: TextStates | None,
    *,
    latents: Tensor,
    null: TextStates | None = None,
    drift: Drift | None = None,
    iterations: int = 3,
    start: int | None = None,
) -> Tensor:
    """The noise that `sample` with the same settings turns into ``latents``, up to the error left.

    A DDIM step from timestep t to s is z_s = c_z z_t + c_f f(z_t, t). Its inverse is the fixed point of
    z_t = (z_s - c_f f(z_t, t)) / c_z, sought from z_t = z_s. One iteration is plain DDIM inversion; each
    further one costs another network call a step and leaves less error where the step contracts, which it
    does unless guidance is strong. Shifts of a drift are taken off where sampling adds them.

    Reference: one iteration, Song et al., 2021, https://arxiv.org/abs/2010.02502, section 4.3; several, Pan
        et al., 2023, https://arxiv.org/abs/2309.04907, section 3.1, without their acceleration.

    Args:
        denoiser: The network, without guidance.
        schedule: The schedule that it was trained on.
        sampler: The sampler to invert: ``ddim`` with eta 0.
        condition: B texts' states, on the latents' device, or ``None``.
        latents: z_0 ``[B, C, h, w]``.
        null: The null condition of guidance, one row or B.
        drift: The drift that sampling has.
        iterations: Network calls a step.
        start: As `sample` will be given; the noise is then that of its first timestep.

    Returns:
        ``[B, C, h, w]`` float32.

    Raises:
        ValueError: If the sampler is not a deterministic DDIM, ``iterations`` is below 1, or the sampler
            cannot begin at ``start``.
    """
    if sampler.scheduler != "ddim" or sampler.stochastic:
        raise ValueError(
            f"Only ddim with eta: 0 can be inverted, got {sampler.scheduler} with eta: {sampler.eta}."
        )
    if iterations < 1:
        raise ValueError(f"iterations = {iterations} must be 1 or more.")
    scheduler = sampling_scheduler(schedule, "ddim", sampler.steps)
    network = guided(denoiser, condition, null, sampler.guidance_scale)
    per_step = None if drift is None else drift.per_step(sampler.steps)
    with torch.no_grad():
        current = latents.float()
        for timestep in reversed(timesteps_below(scheduler, start)):
            if per_step is not None:
                current = current - per_step.to(current)[:, None, None]
            previous = timestep - schedule.timesteps // sampler.steps
            of_latents, of_output = ddim_coefficients(scheduler, timestep, previous)
            timesteps = torch.full((len(current),), timestep, dtype=torch.long, device=current.device)
            estimate = current
            for _ in range(iterations):
                output = network(estimate, timesteps, condition).float()
                estimate = (current - of_output * output) / of_latents
            current = estimate
        whole = len(timesteps_below(scheduler, start)) == len(scheduler.timesteps)
        return current - drift.reverse.to(current)[:, None, None] if drift and whole else current
