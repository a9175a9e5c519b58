"""The noise schedule, its stock diffusers schedulers, and the training loss.

With a_t = sqrt(ᾱ_t) and b_t = sqrt(1 - ᾱ_t), a latent z_0 at timestep t is z_t = a_t z_0 + b_t ε.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from pydantic import Field, model_validator
from torch import Tensor

from counterray.config import Config
from counterray.diffusion.denoiser import Denoiser
from counterray.nn.text import TextStates

Sampler = DDIMScheduler | DPMSolverMultistepScheduler | DDPMScheduler
SamplerName = Literal["ddim", "dpm_solver", "ddpm"]


class ScheduleConfig(Config):
    """How noise is added over time, and what the network predicts.

    The default is Stable Diffusion's, which latents of unit variance are usual to be trained with.
    Reference: Rombach et al., 2022, https://arxiv.org/abs/2112.10752
    """

    timesteps: int = Field(default=1000, ge=2)
    """Noise levels T that the network is trained on."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """How β grows: linearly, as the square of a line, or so that ᾱ is a squared cosine; the last needs
    ``v_prediction``."""
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """β at the first timestep; ``squaredcos_cap_v2`` has none."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """β at the last timestep; ``squaredcos_cap_v2`` has none."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts: ε, or the velocity a_t ε - b_t z_0."""
    zero_terminal_snr: bool = False
    """Whether β is rescaled so that the last timestep holds no signal; needs ``v_prediction``."""
    timestep_spacing: Literal["trailing", "leading"] = "trailing"
    """Which timesteps a sampler of few steps visits. ``trailing`` starts at the last one, where z_T is as
    noisy as the noise it is drawn from; ``leading`` starts below it, at a level that depends on the number
    of steps (Lin et al., 2023, https://arxiv.org/abs/2305.08891, table 2). The sampler ``dpm_solver`` starts
    at the last timestep whatever this says, its steps even in log-SNR."""

    @model_validator(mode="after")
    def _possible(self) -> ScheduleConfig:
        if self.beta_start >= self.beta_end:
            raise ValueError(
                f"beta_start = {self.beta_start} must be below beta_end = {self.beta_end}: noise grows "
                "with time"
            )
        for setting, silent in (
            ("zero_terminal_snr: true", self.zero_terminal_snr),
            ("beta_schedule: squaredcos_cap_v2", self.beta_schedule == "squaredcos_cap_v2"),
        ):
            if silent and self.prediction == "epsilon":
                raise ValueError(
                    f"{setting} needs prediction: v_prediction; at the last timestep hardly any signal is "
                    "left, and errors of a predicted noise are divided by it"
                )
        return self


def training_scheduler(config: ScheduleConfig) -> DDPMScheduler:
    """The stock scheduler that adds noise in training.

    Always this one: `DPMSolverMultistepScheduler.add_noise` runs on a reversed schedule before
    ``set_timesteps``.
    """
    scheduler: DDPMScheduler = DDPMScheduler(**_settings(config), clip_sample=False)
    return scheduler


def sampling_scheduler(config: ScheduleConfig, name: SamplerName, steps: int) -> Sampler:
    """The stock scheduler of a sampler, with its timesteps set.

    Args:
        config: The schedule that the network was trained on.
        name: ``ddim`` (Song et al., 2021, https://arxiv.org/abs/2010.02502), ``dpm_solver`` (DPM-Solver++
            of second order, Lu et al., 2022, https://arxiv.org/abs/2211.01095) or ``ddpm`` (Ho et al., 2020,
            https://arxiv.org/abs/2006.11239).
        steps: Network calls of one sampling.

    Raises:
        ValueError: If there are more steps than timesteps, or the steps of trailing DDIM do not divide them.
    """
    if not 1 <= steps <= config.timesteps:
        raise ValueError(f"steps = {steps} must be between 1 and timesteps = {config.timesteps}.")
    scheduler: Sampler
    if name == "ddim":
        # The stock step lands on t - T // steps, which is the next trailing timestep only then.
        if config.timestep_spacing == "trailing" and config.timesteps % steps:
            near = min(
                (n for n in range(1, config.timesteps + 1) if config.timesteps % n == 0),
                key=lambda n: abs(n - steps),
            )
            raise ValueError(
                f"steps = {steps} must divide timesteps = {config.timesteps} for ddim with trailing "
                f"timesteps; take {near}, or the sampler dpm_solver."
            )
        scheduler = DDIMScheduler(**_settings(config), clip_sample=False)
    elif name == "dpm_solver":
        # With 10 to 20 steps, those even in log-SNR (the paper's own choice, section 4) leave a third to a
        # tenth of the error of steps even in time, whose last jump crosses most of the detail.
        scheduler = DPMSolverMultistepScheduler(**_settings(config), use_lu_lambdas=True)
    else:
        scheduler = DDPMScheduler(**_settings(config), clip_sample=False)
    set_timesteps(scheduler, steps)
    return scheduler


def set_timesteps(scheduler: Sampler, steps: int) -> None:
    """Sets a scheduler's timesteps for so many steps."""
    with warnings.catch_warnings():
        # diffusers' DPM-Solver makes arrays of tensors in a way that NumPy 2 complains of.
        warnings.filterwarnings("ignore", message="__array__", category=DeprecationWarning)
        scheduler.set_timesteps(steps)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        # It looks its place up by timestep, of which steps even in log-SNR may visit one twice.
        scheduler.set_begin_index(0)


@dataclass(frozen=True)
class DenoisingLoss:
    """What one training step of a denoiser gives.

    Attributes:
        each: ``[B]`` mean squared error of each sample, over channels and pixels.
        target: ``[B, C, h, w]`` what the network should have said.
        output: ``[B, C, h, w]`` what it said.
    """

    each: Tensor
    target: Tensor
    output: Tensor


def denoising_loss(
    denoiser: Denoiser,
    scheduler: DDPMScheduler,
    latents: Tensor,
    *,
    noise: Tensor,
    timesteps: Tensor,
    condition: TextStates | None,
    drift: Tensor | None = None,
) -> DenoisingLoss:
    """``‖target - f(a_t z_0 + b_t ε, t, c)‖² / (C h w)`` with ε shifted by the forward drift.

    Reference: Ho et al., 2020, https://arxiv.org/abs/2006.11239, equation 14; for velocities Salimans & Ho,
        2022, https://arxiv.org/abs/2202.00512, appendix D.

    Args:
        denoiser: The network f.
        scheduler: See `training_scheduler`.
        latents: Clean latents z_0 ``[B, C, h, w]``, standardised.
        noise: ``[B, C, h, w]`` from N(0, I).
        timesteps: ``[B]`` long in [0, T).
        condition: What f is told, or ``None``.
        drift: ``[C]`` mean of the noise in training (`Drift.forward`), or ``None`` for 0.
    """
    latents, noise = latents.float(), noise.float()
    if drift is not None:
        noise = noise + drift.to(noise)[:, None, None]
    target = noise
    if scheduler.config["prediction_type"] == "v_prediction":
        target = scheduler.get_velocity(latents, noise, cast(torch.IntTensor, timesteps))
    noisy = scheduler.add_noise(latents, noise, cast(torch.IntTensor, timesteps))
    output = denoiser(noisy, timesteps, condition).float()
    return DenoisingLoss((output - target).square().mean(dim=(1, 2, 3)), target, output)


def terminal_signal(config: ScheduleConfig) -> float:
    """a_T, the share of the image that is left at the last timestep."""
    return float(training_scheduler(config).alphas_cumprod[-1].sqrt())


def ddim_coefficients(scheduler: Sampler, timestep: int, previous: int) -> tuple[float, float]:
    """(c_z, c_f) with which DDIM goes from a timestep to a less noisy one: z_s = c_z z_t + c_f f(z_t, t).

    With ε-prediction c_z = a_s / a_t and c_f = b_s - a_s b_t / a_t; with velocities
    c_z = a_s a_t + b_s b_t and c_f = b_s a_t - a_s b_t.

    Args:
        scheduler: See `sampling_scheduler`.
        timestep: t.
        previous: s < t; the clean latent where negative.

    Reference: Song et al., 2021, https://arxiv.org/abs/2010.02502, equation 12 with σ = 0.
    """
    signal_t, noise_t = _levels(scheduler, timestep)
    signal_s, noise_s = _levels(scheduler, previous)
    if scheduler.config["prediction_type"] == "epsilon":
        return signal_s / signal_t, noise_s - signal_s * noise_t / signal_t
    return signal_s * signal_t + noise_s * noise_t, noise_s * signal_t - signal_s * noise_t


def predicted_noise(scheduler: Sampler, output: Tensor, noisy: Tensor, timestep: int) -> Tensor:
    """The ε that a network's output stands for."""
    if scheduler.config["prediction_type"] == "epsilon":
        return output
    signal, noise = _levels(scheduler, timestep)
    return signal * output + noise * noisy


def predicted_clean(scheduler: Sampler, output: Tensor, noisy: Tensor, timestep: int) -> Tensor:
    """The z_0 that a network's output stands for, (z_t - b_t ε) / a_t."""
    signal, noise = _levels(scheduler, timestep)
    return (noisy - noise * predicted_noise(scheduler, output, noisy, timestep)) / max(signal, 1e-4)


def _levels(scheduler: Sampler, timestep: int) -> tuple[float, float]:
    """(a_t, b_t); (1, 0) where the timestep is negative."""
    if timestep < 0:
        return 1.0, 0.0
    squared = scheduler.alphas_cumprod[timestep].to(torch.float64)
    return float(squared.sqrt()), float((1 - squared).sqrt())


def _settings(config: ScheduleConfig) -> dict[str, Any]:
    return {
        "num_train_timesteps": config.timesteps,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.prediction,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "timestep_spacing": config.timestep_spacing,
    }
