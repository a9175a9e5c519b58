"""Latent drifting: a shift of the diffusion's prior, in training and in sampling.

The paper's text and figures shift z_T alone (``steps: first``), amplified by 1 / a_T on its way to the image.
Its equation 4 adds the shift to the mean of every reverse step (``all``), whose effect grows with the number
of steps; ``rate`` divides it by that number. Reference: Yeganeh et al., Latent Drifting in Diffusion Models
for Counterfactual Medical Image Synthesis, https://arxiv.org/abs/2412.20651.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from pydantic import Field
from torch import Tensor

from counterray.config import Config
from counterray.diffusion.schedule import Sampler, ScheduleConfig, set_timesteps, terminal_signal

Shift = float | tuple[float, ...] | Literal["auto"]


class DriftConfig(Config):
    """Where the diffusion's prior is shifted to, in units of the noise's standard deviation."""

    value: Shift = 0.0
    """The shift δ: one number, one per latent channel, or ``auto`` for a_T E[z_0] per channel, the mean that
    z_T has in training where the last timestep still holds signal (Everaert et al., 2024,
    https://arxiv.org/abs/2309.15842)."""
    forward: Shift | None = None
    """Mean of the noise in training; ``value`` where null. 0 with a ``value`` other than 0 drifts in sampling
    alone."""
    reverse: Shift | None = None
    """Shift in sampling; ``value`` where null."""
    steps: Literal["first", "all", "rate"] = "first"
    """``first`` shifts z_T; ``all`` also shifts the outcome of every step by δ (equation 4 as printed);
    ``rate`` the same by δ × ref_steps / steps, so that the effect depends less on the number of steps."""
    ref_steps: int = Field(default=50, ge=1)
    """Number of steps at which ``rate`` equals ``all``."""


@dataclass(frozen=True)
class Drift:
    """A drift with its numbers settled.

    Attributes:
        forward: ``[C]`` mean of the noise in training.
        reverse: ``[C]`` shift in sampling.
        steps: See `DriftConfig.steps`.
        ref_steps: See `DriftConfig.ref_steps`.
    """

    forward: Tensor
    reverse: Tensor
    steps: Literal["first", "all", "rate"] = "first"
    ref_steps: int = 50

    def per_step(self, steps: int) -> Tensor | None:
        """``[C]`` shift of the outcome of each of so many steps, or ``None`` where only z_T is shifted."""
        if self.steps == "first":
            return None
        return self.reverse if self.steps == "all" else self.reverse * (self.ref_steps / steps)


def resolve(
    config: DriftConfig, schedule: ScheduleConfig, *, channels: int, latent_mean: Tensor | None = None
) -> Drift:
    """Settles a drift's numbers.

    Args:
        config: The drift.
        schedule: The noise schedule, whose a_T ``auto`` needs.
        channels: C, channels of a latent.
        latent_mean: ``[C]`` mean of the training latents over samples and pixels, for ``auto``.

    Raises:
        ValueError: If a list has another length than C, or ``auto`` has no mean to go by.
    """

    def numbers(shift: Shift, setting: str) -> Tensor:
        if isinstance(shift, str):
            if latent_mean is None or latent_mean.shape != (channels,):
                got = "none" if latent_mean is None else str(list(latent_mean.shape))
                raise ValueError(
                    f"drift.{setting} = auto needs the training latents' mean [{channels}], got {got}; "
                    "compute it over the latents or give the drift as a number."
                )
            return terminal_signal(schedule) * latent_mean.detach().float().cpu()
        values: Sequence[float] = (shift,) * channels if isinstance(shift, int | float) else shift
        if len(values) != channels:
            raise ValueError(
                f"drift.{setting} has {len(values)} values for {channels} latent channels; give one number "
                "or one per channel."
            )
        return torch.tensor(values, dtype=torch.float32)

    forward = numbers(config.value, "value") if config.forward is None else numbers(config.forward, "forward")
    reverse = numbers(config.value, "value") if config.reverse is None else numbers(config.reverse, "reverse")
    return Drift(forward, reverse, config.steps, config.ref_steps)


def drifted(scheduler: Sampler, drift: Drift) -> Sampler:
    """A scheduler of the same settings and timesteps that drifts, for our loops and for diffusers' pipelines.

    It acts through ``scale_model_input`` and ``step`` alone: whoever calls both as diffusers documents gets
    the drift. A trajectory that starts below the first timestep is not shifted there.

    Raises:
        ValueError: If the scheduler is of a class that this does not know, or has no timesteps yet.
    """
    known = {kind.__name__: kind for kind in _DRIFTING}
    kind = next((drifting for stock, drifting in _DRIFTING.items() if type(scheduler) is stock), None)
    if kind is None:
        raise ValueError(f"Cannot drift a {type(scheduler).__name__}; known are {', '.join(sorted(known))}.")
    if scheduler.num_inference_steps is None:
        raise ValueError("Call set_timesteps on the scheduler before it is drifted.")
    wrapper = kind.from_config(scheduler.config)
    wrapper.drift = drift
    set_timesteps(wrapper, scheduler.num_inference_steps)
    return cast(Sampler, wrapper)


def _drifting(stock: type[Any]) -> type[Any]:
    class Drifting(stock):  # type: ignore[misc]
        drift: Drift

        def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
            return self._started(super().scale_model_input(sample, timestep), timestep)

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = super().step(model_output, timestep, self._started(sample, timestep), *args, **kwargs)
            shift = self.drift.per_step(len(self.timesteps))
            if shift is None:
                return result
            if isinstance(result, tuple):
                return (result[0] + _like(shift, result[0]), *result[1:])
            result.prev_sample = result.prev_sample + _like(shift, result.prev_sample)
            return result

        def _started(self, sample: Tensor, timestep: Any) -> Tensor:
            """z_T with its shift; any later latent as it is."""
            begun = getattr(self, "step_index", None)  # only DPM-Solver counts, and may repeat a timestep
            if begun or timestep is None or int(timestep) != int(self.timesteps[0]):
                return sample
            return sample + _like(self.drift.reverse, sample)

    # Pipelines look here for what to hand over; without it `generator` would be dropped.
    Drifting.step.__signature__ = inspect.signature(stock.step)  # type: ignore[attr-defined]
    Drifting.__name__ = Drifting.__qualname__ = f"Drifting{stock.__name__}"
    return Drifting


def _like(shift: Tensor, sample: Tensor) -> Tensor:
    return shift.to(sample)[:, None, None]


_DRIFTING = {stock: _drifting(stock) for stock in (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)}
