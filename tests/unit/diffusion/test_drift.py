"""A drift's numbers, and the wrapper against stock schedulers."""

import inspect

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from counterray.config import validate
from counterray.diffusion.drift import Drift, DriftConfig, drifted, resolve
from counterray.diffusion.schedule import ScheduleConfig, sampling_scheduler
from tests.unit.diffusion.toys import Gaussian

SCHEDULE = ScheduleConfig()
SAMPLERS = ["ddim", "dpm_solver", "ddpm"]


def drift(*values, steps="first", ref_steps=50):
    shift = torch.tensor(values)
    return Drift(shift, shift, steps, ref_steps)


def loop(scheduler, noise, per_step=None, schedule=SCHEDULE):
    """A plain diffusers loop, as its documentation has it."""
    network, generator = (
        Gaussian(mean=0.4, deviation=0.7, schedule=schedule),
        torch.Generator().manual_seed(3),
    )
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = noise
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(latents, timestep), timestep, None)
        latents = scheduler.step(output, timestep, latents, **extra).prev_sample
        if per_step is not None:
            latents = latents + per_step
    return latents


def noise(channels=1):
    return torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", ["first", "all", "rate"])
def test_no_drift_is_bitwise_the_stock_scheduler(name, steps):
    stock = loop(sampling_scheduler(SCHEDULE, name, 10), noise())
    still = loop(drifted(sampling_scheduler(SCHEDULE, name, 10), drift(0.0, steps=steps)), noise())
    assert torch.equal(stock, still)


@pytest.mark.parametrize("name", SAMPLERS)
def test_first_is_a_shift_of_the_initial_noise(name):
    shift = torch.tensor([0.2, -0.1])
    stock = loop(sampling_scheduler(SCHEDULE, name, 10), noise(2) + shift[:, None, None])
    assert torch.equal(
        loop(drifted(sampling_scheduler(SCHEDULE, name, 10), drift(0.2, -0.1)), noise(2)), stock
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_shifts_the_initial_noise_and_every_outcome(name):
    expected = loop(sampling_scheduler(SCHEDULE, name, 10), noise() + 0.03, per_step=0.03)
    found = loop(drifted(sampling_scheduler(SCHEDULE, name, 10), drift(0.03, steps="all")), noise())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_first_timestep_that_is_visited_twice_drifts_once():
    schedule = ScheduleConfig(prediction="v_prediction", zero_terminal_snr=True)
    scheduler = sampling_scheduler(schedule, "dpm_solver", 50)
    assert scheduler.timesteps[0] == scheduler.timesteps[1] == 999
    stock = loop(scheduler, noise() + 0.2, schedule=schedule)
    found = loop(
        drifted(sampling_scheduler(schedule, "dpm_solver", 50), drift(0.2)), noise(), schedule=schedule
    )
    assert torch.equal(found, stock)


def test_rate_is_all_at_the_reference_number_of_steps():
    every, rate = (
        loop(
            drifted(sampling_scheduler(SCHEDULE, "ddim", 10), drift(0.03, steps=steps, ref_steps=10)), noise()
        )
        for steps in ("all", "rate")
    )
    assert torch.equal(every, rate)
    assert drift(0.03, steps="rate").per_step(100).tolist() == pytest.approx([0.015])
    assert drift(0.03).per_step(100) is None


def test_tuples_drift_as_well():
    scheduler = drifted(sampling_scheduler(SCHEDULE, "ddim", 10), drift(0.5, steps="all"))
    latents, output = noise(), torch.zeros(2, 1, 4, 4)
    timestep = scheduler.timesteps[3]
    found = scheduler.step(output, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(found, scheduler.step(output, timestep, latents).prev_sample)
    stock = sampling_scheduler(SCHEDULE, "ddim", 10).step(output, timestep, latents).prev_sample
    torch.testing.assert_close(found, stock + 0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pipelines_see_the_stock_signature(name):
    stock = sampling_scheduler(SCHEDULE, name, 10)
    wrapped = drifted(stock, drift(0.1))
    assert inspect.signature(wrapped.step) == inspect.signature(stock.step)
    assert isinstance(wrapped, type(stock))
    assert wrapped.config["timestep_spacing"] == "trailing"
    assert torch.equal(wrapped.timesteps, stock.timesteps)


def test_the_wrapped_scheduler_is_left_alone():
    stock = sampling_scheduler(SCHEDULE, "ddim", 10)
    before = loop(stock, noise())
    drifted(stock, drift(0.5, steps="all"))
    assert torch.equal(loop(stock, noise()), before)


def test_numbers_and_lists():
    found = resolve(DriftConfig(value=0.1), SCHEDULE, channels=2)
    assert found.forward.tolist() == found.reverse.tolist() == pytest.approx([0.1, 0.1])
    found = resolve(DriftConfig(value=(0.1, -0.2), steps="rate", ref_steps=20), SCHEDULE, channels=2)
    assert found.reverse.tolist() == pytest.approx([0.1, -0.2])
    assert (found.steps, found.ref_steps) == ("rate", 20)


@pytest.mark.parametrize("value", [0.1, (0.1, -0.2), "auto"])
def test_settings_survive_a_bundle(value):
    config = DriftConfig(value=value, forward=0.0)
    assert validate(DriftConfig, config.model_dump(mode="json")) == config


def test_forward_and_reverse_are_apart():
    found = resolve(DriftConfig(value=0.1, forward=0.0), SCHEDULE, channels=1)
    assert (found.forward.item(), found.reverse.item()) == (0.0, pytest.approx(0.1))
    found = resolve(DriftConfig(value=0.1, reverse=(0.3,)), SCHEDULE, channels=1)
    assert (found.forward.item(), found.reverse.item()) == (pytest.approx(0.1), pytest.approx(0.3))


def test_auto_is_the_mean_that_is_left_at_the_end():
    found = resolve(
        DriftConfig(value="auto", forward=0.0), SCHEDULE, channels=2, latent_mean=torch.tensor([2.0, -1.0])
    )
    assert found.reverse.tolist() == pytest.approx([2 * 0.06826, -0.06826], abs=1e-4)
    assert found.forward.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("config", "mean", "message"),
    [
        ({"value": (0.1, 0.2)}, None, r"drift\.value has 2 values for 1 latent channels"),
        ({"reverse": "auto"}, None, r"drift\.reverse = auto needs .* mean \[1\], got none"),
        ({"value": "auto"}, torch.zeros(3), r"drift\.value = auto needs .* got \[3\]"),
    ],
)
def test_numbers_that_do_not_fit(config, mean, message):
    with pytest.raises(ValueError, match=message):
        resolve(DriftConfig(**config), SCHEDULE, channels=1, latent_mean=mean)


def test_schedulers_that_cannot_drift():
    with pytest.raises(ValueError, match="Cannot drift a EulerDiscreteScheduler; known are DDIMScheduler"):
        drifted(EulerDiscreteScheduler(), drift(0.1))
    with pytest.raises(ValueError, match="set_timesteps"):
        drifted(DDIMScheduler(), drift(0.1))
