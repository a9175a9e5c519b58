"""Sampling against plain diffusers loops, and seeds that no batch can touch."""

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.diffusion.drift import Drift
from counterray.diffusion.sampling import SamplerConfig, initial_noise, noised, sample
from counterray.diffusion.schedule import ScheduleConfig, sampling_scheduler, training_scheduler
from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.nn.text import TextStates
from tests.unit.diffusion.toys import Gaussian, texts

SEEDS = torch.tensor([5, 2**40, 17])
SHAPE = (1, 4, 4)
UNGUIDED = [
    SamplerConfig(scheduler="ddim", steps=10, guidance_scale=1),
    SamplerConfig(scheduler="ddim", steps=10, guidance_scale=1, eta=0.7),
    SamplerConfig(scheduler="dpm_solver", steps=7, guidance_scale=1),
    SamplerConfig(scheduler="ddpm", steps=10, guidance_scale=1),
]


def one_by_one(config):
    return f"{config.scheduler}-{config.eta}"


@pytest.fixture(scope="module")
def small_net():
    torch.manual_seed(0)
    config = DenoiserConfig(widths=(16, 16), head_width=8)
    return LatentDenoiser(config, channels=1, size=8, text_width=8).eval().requires_grad_(False)


@pytest.mark.parametrize("sampler", UNGUIDED, ids=one_by_one)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_plain_diffusers_loop_gives_the_same_bits(sampler, prediction):
    schedule = ScheduleConfig(prediction=prediction)
    network = Gaussian(mean=0.3, deviation=0.6, schedule=schedule)
    noise = initial_noise(SEEDS, SHAPE)
    found = sample(network, schedule, sampler, None, noise=noise, seeds=SEEDS)

    scheduler = sampling_scheduler(schedule, sampler.scheduler, sampler.steps)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in SEEDS]
    latents = torch.cat([torch.randn((1, *SHAPE), generator=generator) for generator in generators])
    assert torch.equal(noise, latents)
    extra = {"eta": sampler.eta} if sampler.scheduler == "ddim" else {}
    for timestep in scheduler.timesteps:
        output = network(latents, timestep, None)
        latents = scheduler.step(output, timestep, latents, generator=generators, **extra).prev_sample
    assert torch.equal(found, latents)


@pytest.mark.parametrize("sampler", UNGUIDED, ids=one_by_one)
def test_a_sample_alone_is_bitwise_the_one_in_a_batch(sampler):
    schedule, network, condition = ScheduleConfig(), Gaussian(deviation=0.6), texts([0.0, 1.0, 2.0])
    together = sample(network, schedule, sampler, condition, noise=initial_noise(SEEDS, SHAPE), seeds=SEEDS)
    for row in range(3):
        own = SEEDS[row : row + 1]
        alone = sample(
            network,
            schedule,
            sampler,
            condition[row : row + 1],
            noise=initial_noise(own, SHAPE),
            seeds=own,
        )
        assert torch.equal(alone[0], together[row])


def test_a_network_in_a_batch_differs_by_rounding_alone(small_net):
    torch.manual_seed(1)
    condition = TextStates(torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool))
    null = TextStates(torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))
    schedule = ScheduleConfig(prediction="v_prediction")
    noise = initial_noise(torch.arange(5), (1, 8, 8))
    sampler = SamplerConfig(steps=20)
    together = sample(small_net, schedule, sampler, condition, noise=noise, null=null)
    for row in range(5):
        rows = slice(row, row + 1)
        alone = sample(small_net, schedule, sampler, condition[rows], noise=noise[rows], null=null)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=2e-5)


def test_seeds_decide():
    noise = initial_noise(SEEDS, SHAPE)
    assert noise.dtype == torch.float32
    assert torch.equal(initial_noise(SEEDS.flip(0), SHAPE), noise.flip(0))
    assert not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(
        initial_noise(torch.arange(200), SHAPE).std(), torch.tensor(1.0), rtol=0, atol=0.05
    )


def test_steps_do_not_draw_the_initial_noise_again():
    """One DDPM step from T = 2 with a network that says 0 reveals the noise that it adds."""
    schedule = ScheduleConfig(timesteps=2, beta_schedule="linear", beta_start=0.1, beta_end=0.2)
    seen = []

    def silent(noisy, timestep, condition):
        seen.append(noisy)
        return torch.zeros_like(noisy)

    noise = initial_noise(SEEDS, (1, 32, 32))
    sampler = SamplerConfig(scheduler="ddpm", steps=2, guidance_scale=1)
    sample(silent, schedule, sampler, None, noise=noise, seeds=SEEDS)
    # mean = z_T / sqrt(1 - β); variance = β (1 - 0.9) / (1 - 0.72)
    added = (seen[1] - seen[0] / 0.8**0.5) / (0.2 * 0.1 / 0.28) ** 0.5
    assert torch.corrcoef(torch.stack([added.flatten(), noise.flatten()]))[0, 1].abs() < 0.05
    assert added.std().item() == pytest.approx(1, abs=0.05)


def test_guidance_and_drift_reach_the_loop():
    schedule, noise = ScheduleConfig(), initial_noise(SEEDS, SHAPE)
    network, condition = Gaussian(deviation=0.5), texts([1.0, 1.0, 1.0])
    plain = sample(network, schedule, SamplerConfig(steps=10, guidance_scale=1), condition, noise=noise)
    strong = sample(
        network,
        schedule,
        SamplerConfig(steps=10, guidance_scale=3),
        condition,
        noise=noise,
        null=texts([0.0]),
    )
    # The scores' difference is that of the means, so that the guided mean is near 3.
    assert plain.mean().item() == pytest.approx(1, abs=0.2)
    assert strong.mean().item() == pytest.approx(3, abs=0.3)
    shift = torch.tensor([0.2])
    moved = sample(
        network,
        schedule,
        SamplerConfig(steps=10, guidance_scale=1),
        condition,
        noise=noise,
        drift=Drift(shift, shift),
    )
    by_hand = sample(
        network, schedule, SamplerConfig(steps=10, guidance_scale=1), condition, noise=noise + 0.2
    )
    assert torch.equal(moved, by_hand)


def test_arithmetic_is_float32_whatever_the_network_says():
    schedule, noise = ScheduleConfig(), initial_noise(SEEDS, SHAPE)
    network = Gaussian(deviation=0.5)
    sampler = SamplerConfig(steps=10, guidance_scale=1)

    def coarse(noisy, timestep, condition):
        assert noisy.dtype == torch.float32
        return network(noisy, timestep, condition).bfloat16()

    found = sample(coarse, schedule, sampler, None, noise=noise.bfloat16())
    assert found.dtype == torch.float32
    exact = sample(network, schedule, sampler, None, noise=noise.bfloat16())
    assert 0 < (found - exact).abs().max() < 0.05


def test_no_graph_is_kept(small_net):
    condition = TextStates(torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))
    noise = initial_noise(SEEDS[:1], (1, 8, 8)).requires_grad_()
    sampler = SamplerConfig(steps=2, guidance_scale=1)
    assert not sample(small_net, ScheduleConfig(), sampler, condition, noise=noise).requires_grad


def test_impossible_samplers():
    with pytest.raises(ConfigError, match=r"eta = 0\.5 is a setting of ddim; dpm_solver takes 0 only"):
        validate(SamplerConfig, {"scheduler": "dpm_solver", "eta": 0.5})
    noise = initial_noise(SEEDS, SHAPE)
    for sampler in UNGUIDED[1], UNGUIDED[3]:
        for seeds in (None, SEEDS[:2]):
            with pytest.raises(ValueError, match="needs a seed for each of the 3 samples"):
                sample(Gaussian(), ScheduleConfig(), sampler, None, noise=noise, seeds=seeds)
    with pytest.raises(ValueError, match=r"guidance_scale = 3\.0 needs a condition"):
        sample(Gaussian(), ScheduleConfig(), SamplerConfig(), None, noise=noise)


def test_a_start_runs_the_timesteps_below_it_from_latents_as_noisy_as_its_first():
    """Of 20 steps over 1000, t0 = 200 leaves 199, 149, 99 and 49; by hand, those of the plain loop."""
    schedule, sampler = ScheduleConfig(), SamplerConfig(steps=20, guidance_scale=1)
    network = Gaussian(mean=0.3, deviation=0.6, schedule=schedule)
    clean, noise = torch.randn(3, 1, 4, 4), initial_noise(SEEDS, SHAPE)
    noisy = noised(schedule, sampler, clean, noise=noise, start=200)
    signal = training_scheduler(schedule).alphas_cumprod[199]
    torch.testing.assert_close(noisy, signal.sqrt() * clean + (1 - signal).sqrt() * noise)
    found = sample(network, schedule, sampler, None, noise=noisy, start=200)
    assert len(network.calls) == 4
    latents, scheduler = noisy, sampling_scheduler(schedule, "ddim", 20)
    for timestep in (199, 149, 99, 49):
        output = network(latents, torch.full((3,), timestep), None)
        latents = scheduler.step(output, timestep, latents).prev_sample
    assert torch.equal(found, latents)
    whole = sample(network, schedule, sampler, None, noise=noise, start=1000)
    assert torch.equal(whole, sample(network, schedule, sampler, None, noise=noise))


@pytest.mark.parametrize(
    ("sampler", "start", "message"),
    [
        (SamplerConfig(steps=20, guidance_scale=1), 49, "below the sampler's last timestep, 49"),
        (SamplerConfig(scheduler="dpm_solver", steps=10, guidance_scale=1), 200, "cannot begin in between"),
    ],
)
def test_a_start_that_cannot_be_is_refused(sampler, start, message):
    network, noise = Gaussian(), initial_noise(SEEDS, SHAPE)
    with pytest.raises(ValueError, match=message):
        sample(network, network.schedule, sampler, None, noise=noise, start=start)
    with pytest.raises(ValueError, match=message):
        noised(network.schedule, sampler, noise, noise=noise, start=start)
