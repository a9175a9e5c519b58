"""Inversion on denoisers known in closed form, on a small network, and what it refuses."""

import pytest
import torch

from counterray.diffusion.drift import Drift
from counterray.diffusion.inversion import invert
from counterray.diffusion.sampling import SamplerConfig, initial_noise, sample
from counterray.diffusion.schedule import ScheduleConfig
from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.nn.text import TextStates
from tests.unit.diffusion.toys import Gaussian, Mixture, texts

NOISE = initial_noise(torch.arange(4), (1, 8, 8))


def network(prediction="epsilon"):
    schedule = ScheduleConfig(prediction=prediction)
    centres = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Mixture(centres, deviation=0.5, schedule=schedule)


def error(denoiser, sampler, *, iterations, condition=None, **options):
    """Largest error of noise -> latents -> noise and of latents -> noise -> latents."""
    settings = (denoiser, denoiser.schedule, sampler, condition)
    latents = sample(*settings, noise=NOISE, **options)
    noise = invert(*settings, latents=latents, iterations=iterations, **options)
    again = sample(*settings, noise=noise, **options)
    return (noise - NOISE).abs().max().item(), (again - latents).abs().max().item()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [20, 100])
def test_iterations_lead_to_the_exact_inverse(prediction, steps):
    sampler = SamplerConfig(steps=steps, guidance_scale=1)
    errors = [error(network(prediction), sampler, iterations=count) for count in (1, 3, 30)]
    noise, latents = zip(*errors, strict=True)
    assert noise[0] > noise[1] > noise[2]
    assert noise[2] < 1e-3
    assert latents[2] < 0.02  # between two centres, an error of the noise grows on its way back


def test_one_step_by_hand():
    """Data N(0, 1): ε = b z, so that one call at z_0 gives z_T = a_T z_0 + b_T² z_0 with c's of N = 1."""
    denoiser = Gaussian()
    latents = torch.full((1, 1, 1, 1), 2.0)
    found = invert(
        denoiser,
        denoiser.schedule,
        SamplerConfig(steps=1, guidance_scale=1),
        None,
        latents=latents,
        iterations=1,
    )
    signal = 0.06826
    assert found.item() == pytest.approx(2 * (signal + (1 - signal**2)), rel=1e-4)


@pytest.mark.parametrize("steps", ["first", "all", "rate"])
def test_drift_is_taken_off_again(steps):
    sampler, shift = (
        SamplerConfig(steps=20, guidance_scale=1),
        torch.tensor([0.1 if steps == "first" else 0.01]),
    )
    drift = Drift(shift, shift, steps)
    assert max(error(network(), sampler, iterations=30, drift=drift)) < 2e-3

    latents = sample(network(), ScheduleConfig(), sampler, None, noise=NOISE, drift=drift)
    plain = invert(network(), ScheduleConfig(), sampler, None, latents=latents, iterations=30)
    assert (plain - NOISE).abs().max() > 0.05


def test_guidance_is_inverted():
    sampler = SamplerConfig(steps=50, guidance_scale=2.0)
    condition = texts([0.5, 0.1, -0.5, 1.0])
    errors = error(Gaussian(deviation=0.8), sampler, iterations=20, condition=condition, null=texts([0.0]))
    assert max(errors) < 1e-3


def test_a_network_is_inverted():
    torch.manual_seed(0)
    schedule = ScheduleConfig(prediction="v_prediction")
    denoiser = LatentDenoiser(DenoiserConfig(widths=(16, 16), head_width=8), channels=1, size=8, text_width=4)
    denoiser.eval().requires_grad_(False).schedule = schedule
    condition = TextStates(torch.randn(4, 3, 4), torch.ones(4, 3, dtype=torch.bool))
    sampler = SamplerConfig(steps=10, guidance_scale=1)
    plain = error(denoiser, sampler, iterations=1, condition=condition)
    refined = error(denoiser, sampler, iterations=8, condition=condition)
    assert max(refined) < 1e-3
    assert max(refined) < max(plain) / 10


def test_zero_terminal_signal_is_inverted():
    schedule = ScheduleConfig(prediction="v_prediction", zero_terminal_snr=True)
    denoiser = Gaussian(deviation=0.7, schedule=schedule)
    assert max(error(denoiser, SamplerConfig(steps=20, guidance_scale=1), iterations=20)) < 1e-3


def test_no_weights_learn_and_no_graph_is_kept():
    latents = NOISE.clone().requires_grad_()
    denoiser = network()
    found = invert(
        denoiser, denoiser.schedule, SamplerConfig(steps=2, guidance_scale=1), None, latents=latents
    )
    assert not found.requires_grad
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("sampler", "iterations", "message"),
    [
        ({"scheduler": "dpm_solver"}, 3, "Only ddim with eta: 0 can be inverted, got dpm_solver"),
        ({"eta": 0.1}, 3, r"got ddim with eta: 0\.1"),
        ({}, 0, "iterations = 0 must be 1 or more"),
    ],
)
def test_what_cannot_be_inverted(sampler, iterations, message):
    sampler = SamplerConfig(guidance_scale=1, **sampler)
    with pytest.raises(ValueError, match=message):
        invert(network(), ScheduleConfig(), sampler, None, latents=NOISE, iterations=iterations)


def test_inversion_up_to_a_start_is_undone_by_sampling_from_it():
    denoiser, sampler = network(), SamplerConfig(steps=100, guidance_scale=1)
    latents = sample(denoiser, denoiser.schedule, sampler, None, noise=NOISE)
    settings = (denoiser, denoiser.schedule, sampler, None)
    noisy = invert(*settings, latents=latents, iterations=30, start=200)
    again = sample(*settings, noise=noisy, start=200)
    assert float((again - latents).abs().max()) < 1e-3
    assert float((noisy - latents).abs().max()) > 0.1


@pytest.mark.parametrize("steps", ["first", "all", "rate"])
def test_a_start_above_all_timesteps_is_a_whole_sampling_also_with_its_drift(steps):
    """Sampling shifts z_T at its first timestep, whether it is told to begin there or not."""
    denoiser, sampler = network(), SamplerConfig(steps=20, guidance_scale=1)
    shift = torch.tensor([0.1 if steps == "first" else 0.01])
    drift = Drift(shift, shift, steps)
    assert max(error(denoiser, sampler, iterations=30, drift=drift, start=1000)) < 2e-3
    # A sampling that begins in between has no shift of z_T, only those of its steps.
    settings = (denoiser, denoiser.schedule, sampler, None)
    latents = sample(*settings, noise=NOISE)
    noisy = invert(*settings, latents=latents, iterations=30, drift=drift, start=200)
    again = sample(*settings, noise=noisy, drift=drift, start=200)
    assert float((again - latents).abs().max()) < 1e-3
