"""The schedule by hand, the loss by hand, and what cannot be set."""

import math

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.diffusion.schedule import (
    ScheduleConfig,
    ddim_coefficients,
    denoising_loss,
    predicted_noise,
    sampling_scheduler,
    terminal_signal,
    training_scheduler,
)
from tests.unit.diffusion.toys import Gaussian

SHORT = {"timesteps": 2, "beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2}
"""ᾱ = 0.9, 0.72."""


def constant(value):
    return lambda noisy, timestep, condition: torch.full_like(noisy, value)


def test_noise_is_added_as_the_schedule_says():
    seen = {}

    def denoiser(noisy, timestep, condition):
        seen["noisy"] = noisy
        return noisy

    denoising_loss(
        denoiser,
        training_scheduler(ScheduleConfig(**SHORT)),
        torch.full((2, 1, 1, 1), 3.0),
        noise=torch.full((2, 1, 1, 1), 2.0),
        timesteps=torch.tensor([0, 1]),
        condition=None,
    )
    expected = [
        math.sqrt(0.9) * 3 + math.sqrt(0.1) * 2,
        math.sqrt(0.72) * 3 + math.sqrt(0.28) * 2,
    ]
    assert seen["noisy"].flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("prediction", "drift", "target"),
    [
        ("epsilon", None, 2.0),
        ("epsilon", 0.5, 2.5),
        ("v_prediction", None, math.sqrt(0.72) * 2 - math.sqrt(0.28) * 3),
        ("v_prediction", 0.5, math.sqrt(0.72) * 2.5 - math.sqrt(0.28) * 3),
    ],
)
def test_loss_by_hand(prediction, drift, target):
    result = denoising_loss(
        constant(1.0),
        training_scheduler(ScheduleConfig(**SHORT, prediction=prediction)),
        torch.full((1, 2, 2, 2), 3.0),
        noise=torch.full((1, 2, 2, 2), 2.0),
        timesteps=torch.tensor([1]),
        condition=None,
        drift=None if drift is None else torch.tensor([drift, drift]),
    )
    assert result.each.tolist() == pytest.approx([(target - 1) ** 2], rel=1e-5)
    assert result.target[0, 0, 0, 0].item() == pytest.approx(target, abs=1e-6)
    assert result.output.shape == (1, 2, 2, 2)


def test_loss_is_of_each_sample_and_each_channel_drifts_by_its_own():
    result = denoising_loss(
        constant(0.0),
        training_scheduler(ScheduleConfig(**SHORT)),
        torch.zeros(2, 2, 1, 1),
        noise=torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 2, 1, 1),
        timesteps=torch.tensor([0, 1]),
        condition=None,
        drift=torch.tensor([0.0, 1.0]),
    )
    assert result.each.tolist() == pytest.approx([(1 + 4) / 2, (9 + 16) / 2])


def test_bayes_optimal_denoiser_has_the_posterior_variance_as_its_loss():
    """Var(ε | z_t) = a² s² / (a² s² + b²) for Gaussian data of deviation s."""
    schedule = ScheduleConfig()
    generator = torch.Generator().manual_seed(0)
    noise, clean = (torch.randn(64, 1, 16, 16, generator=generator) for _ in range(2))
    for timestep in (50, 500):
        result = denoising_loss(
            Gaussian(deviation=0.5, schedule=schedule),
            training_scheduler(schedule),
            0.5 * clean,
            noise=noise,
            timesteps=torch.full((64,), timestep),
            condition=None,
        )
        squared = float(training_scheduler(schedule).alphas_cumprod[timestep])
        expected = squared * 0.25 / (squared * 0.25 + 1 - squared)
        assert result.each.mean().item() == pytest.approx(expected, rel=0.03)


def test_loss_reaches_the_network_in_its_own_type_and_is_float32():
    result = denoising_loss(
        lambda noisy, timestep, condition: noisy.bfloat16(),
        training_scheduler(ScheduleConfig()),
        torch.zeros(1, 1, 2, 2, dtype=torch.float16),
        noise=torch.ones(1, 1, 2, 2),
        timesteps=torch.tensor([3]),
        condition=None,
    )
    assert result.each.dtype == result.target.dtype == torch.float32


def test_terminal_signal_of_stable_diffusion():
    assert terminal_signal(ScheduleConfig()) == pytest.approx(0.06826, abs=1e-5)


def test_zero_terminal_signal():
    zero = ScheduleConfig(zero_terminal_snr=True, prediction="v_prediction")
    assert terminal_signal(zero) == 0.0
    assert (
        training_scheduler(zero).alphas_cumprod[0] == training_scheduler(ScheduleConfig()).alphas_cumprod[0]
    )


@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "ddpm"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_trailing_samplers_start_at_the_last_timestep(name, steps):
    scheduler = sampling_scheduler(ScheduleConfig(), name, steps)
    assert len(scheduler.timesteps) == steps
    assert int(scheduler.timesteps[0]) == 999


def test_leading_samplers_start_below_it():
    scheduler = sampling_scheduler(ScheduleConfig(timestep_spacing="leading"), "ddim", 5)
    assert scheduler.timesteps.tolist() == [800, 600, 400, 200, 0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_coefficients_are_those_of_the_stock_step(prediction, steps):
    schedule = ScheduleConfig(prediction=prediction)
    scheduler = sampling_scheduler(schedule, "ddim", steps)
    torch.manual_seed(0)
    latents, output = torch.randn(2, 1, 1, 8, 8).unbind()
    for timestep in scheduler.timesteps.tolist():
        of_latents, of_output = ddim_coefficients(scheduler, timestep, timestep - 1000 // steps)
        stock = scheduler.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(of_latents * latents + of_output * output, stock, rtol=1e-4, atol=1e-4)


def test_velocity_stands_for_noise():
    schedule = ScheduleConfig(prediction="v_prediction")
    scheduler = sampling_scheduler(schedule, "ddim", 4)
    clean, noise = torch.tensor([0.3]), torch.tensor([-1.2])
    squared = scheduler.alphas_cumprod[499]
    signal, other = squared.sqrt(), (1 - squared).sqrt()
    found = predicted_noise(scheduler, signal * noise - other * clean, signal * clean + other * noise, 499)
    torch.testing.assert_close(found, noise)
    plain = sampling_scheduler(ScheduleConfig(), "ddim", 4)
    assert predicted_noise(plain, noise, clean, 499) is noise


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_start": 0.02}, "beta_start = 0.02 must be below beta_end = 0.012"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr: true needs prediction: v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2 needs prediction: v_prediction"),
        ({"timesteps": 1}, "timesteps"),
        ({"timestep_spacing": "linspace"}, "trailing"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(ScheduleConfig, settings)


def test_steps_outside_the_schedule():
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"steps = {steps} must be between 1 and timesteps = 1000"):
            sampling_scheduler(ScheduleConfig(), "ddpm", steps)


def test_ddim_steps_that_do_not_divide_the_timesteps():
    with pytest.raises(ValueError, match=r"steps = 30 must divide timesteps = 1000 .* take 25"):
        sampling_scheduler(ScheduleConfig(), "ddim", 30)
    for name, spacing in (("dpm_solver", "trailing"), ("ddpm", "trailing"), ("ddim", "leading")):
        scheduler = sampling_scheduler(ScheduleConfig(timestep_spacing=spacing), name, 30)
        assert len(scheduler.timesteps) == 30
