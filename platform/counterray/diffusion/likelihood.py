"""What a denoiser says of the likelihood of latents."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from counterray.diffusion.denoiser import Denoiser
from counterray.diffusion.schedule import ScheduleConfig, training_scheduler
from counterray.nn.text import TextStates


def variational_bound(
    denoiser: Denoiser, schedule: ScheduleConfig, latents: Tensor, condition: TextStates | None
) -> Tensor:
    """Variational bound of the latents' negative log-likelihood given a condition, ``[B]`` [nats].

    One draw of t in 1 to T - 1 and of ε (torch's global random state) of
    ``(T - 1)/2 (SNR(t-1) - SNR(t)) ‖z_0 - ẑ‖²``, with ẑ the clean latent that the denoiser's output stands
    for; the terms of the prior and of t = 0 are left out, as they do not depend on the denoiser.

    Args:
        denoiser: The network, without guidance and without drift.
        schedule: The schedule that it was trained on.
        latents: z_0 ``[B, C, h, w]``, standardised.
        condition: B conditions, or ``None``.

    Reference: Kingma et al., 2021, https://arxiv.org/abs/2107.00630, equation 13.
    """
    scheduler = training_scheduler(schedule)
    squared = scheduler.alphas_cumprod.to(latents.device)
    timesteps = torch.randint(1, len(squared), (len(latents),), device=latents.device)
    signal, level = (part[timesteps][:, None, None, None] for part in (squared.sqrt(), (1 - squared).sqrt()))
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, cast(torch.IntTensor, timesteps))
    output = denoiser(noisy, timesteps, condition)
    found = (
        (noisy - level * output) / signal
        if schedule.prediction == "epsilon"
        else signal * noisy - level * output
    )
    ratio = squared / (1 - squared)
    weight = 0.5 * (len(squared) - 1) * (ratio[timesteps - 1] - ratio[timesteps])
    return torch.as_tensor(weight * (found - latents).square().sum(dim=(1, 2, 3)))
