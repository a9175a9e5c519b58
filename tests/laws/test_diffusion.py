"""What must hold of diffusion whatever the data: moments, the laws of drift, and of noise optimisation."""

import pytest
import torch

from counterray.diffusion.drift import Drift, DriftConfig, resolve
from counterray.diffusion.inversion import invert
from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig, optimise_noise
from counterray.diffusion.sampling import SamplerConfig, initial_noise, sample
from counterray.diffusion.schedule import ScheduleConfig, denoising_loss, terminal_signal, training_scheduler
from counterray.diffusion.targets import targets_for
from tests.unit.diffusion.toys import Analytic, Gaussian, Mixture

PIXELS = 4096
SPREAD = 0.5
"""Deviation of an image's mean in the drift experiments."""


class ImageMean(Analytic):
    """Images that are one grey value each, N(0, SPREAD²): the mean over all 4,096 pixels is what is known.

    ``forward`` is the drift that the denoiser was trained with.
    """

    def __init__(self, schedule=None, forward=0.0):
        super().__init__(schedule)
        self.forward = forward

    def clean(self, noisy, signal, noise, condition):
        mean = noisy.mean(dim=(1, 2, 3), keepdim=True) - noise * self.forward
        variance = signal**2 * SPREAD**2 + noise**2 / PIXELS
        return (signal * SPREAD**2 / variance * mean).expand_as(noisy)


def amplification(steps, mode, *, spacing="trailing", forward=0.0):
    """Change of the final images' mean per unit of drift."""
    schedule = ScheduleConfig(timestep_spacing=spacing)
    shift = torch.tensor([0.01])
    means = [
        sample(
            ImageMean(schedule, forward=0.01 * forward * used),
            schedule,
            SamplerConfig(steps=steps, guidance_scale=1),
            None,
            noise=torch.zeros(1, 1, 64, 64),
            drift=Drift(used * shift, used * shift, mode),
        ).mean()
        for used in (0.0, 1.0)
    ]
    return ((means[1] - means[0]) / 0.01).item()


@pytest.mark.parametrize(
    ("steps", "leading", "trailing", "literal", "rate"),
    [
        (5, 5.1, 12.8, 12.3, 76.9),
        (10, 8.1, 13.0, 28.2, 108),
        (20, 10.4, 13.2, 60.8, 136),
        (50, 12.1, 13.3, 159, 159),
        (100, 12.8, 13.3, 324, 168),
    ],
)
def test_drift_is_amplified_as_was_measured(steps, leading, trailing, literal, rate):
    """The table that the choice of ``first`` and ``trailing`` rests on; its per-step columns are leading."""
    assert amplification(steps, "first", spacing="leading") == pytest.approx(leading, rel=0.01)
    assert amplification(steps, "first") == pytest.approx(trailing, rel=0.01)
    assert amplification(steps, "all", spacing="leading") == pytest.approx(literal, rel=0.01)
    assert amplification(steps, "rate", spacing="leading") == pytest.approx(rate, rel=0.01)


def test_prior_shift_hardly_depends_on_the_steps_and_the_literal_one_does():
    first, every, rate = (
        [amplification(steps, mode) for steps in (10, 100)] for mode in ("first", "all", "rate")
    )
    assert first[1] / first[0] == pytest.approx(1, abs=0.03)
    assert every[1] / every[0] > 7
    assert rate[1] / rate[0] < 1.3


def test_drift_in_training_and_sampling_alike_has_no_effect():
    """A consistent drift re-parametrises the model; in sampling alone it moves the images."""
    assert abs(amplification(50, "first", forward=1.0)) < 0.1
    assert amplification(50, "first") > 13


def test_training_with_drift_teaches_the_drifted_denoiser():
    """The loss is least for the closed-form denoiser of drifted noise, not for the one without drift."""
    schedule, generator = ScheduleConfig(), torch.Generator().manual_seed(0)
    grey = SPREAD * torch.randn(256, 1, 1, 1, generator=generator)
    noise = torch.randn(256, 1, 64, 64, generator=generator)

    def loss(forward):
        """Of the predicted noise's mean over pixels, all that this denoiser can know."""
        result = denoising_loss(
            ImageMean(schedule, forward=forward),
            training_scheduler(schedule),
            grey.expand(-1, 1, 64, 64),
            noise=noise,
            timesteps=torch.full((256,), 900),
            condition=None,
            drift=torch.tensor([0.2]),
        )
        return (result.output - result.target).mean(dim=(1, 2, 3)).square().mean().item()

    assert loss(0.2) < loss(0.0) / 3
    assert loss(0.2) < loss(0.3) / 1.5


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"), [("ddim", 500, 0.01), ("dpm_solver", 25, 0.01), ("ddpm", 500, 0.02)]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_samples_of_a_gaussian_have_its_moments(name, steps, tolerance, prediction):
    schedule = ScheduleConfig(prediction=prediction)
    seeds = torch.arange(48)
    found = sample(
        Gaussian(mean=0.8, deviation=0.5, schedule=schedule),
        schedule,
        SamplerConfig(scheduler=name, steps=steps, guidance_scale=1),
        None,
        noise=initial_noise(seeds, (1, 16, 16)),
        seeds=seeds,
        # Without it z_T would lack the mean a_T × 0.8 that it has in training.
        drift=resolve(
            DriftConfig(value="auto", forward=0.0), schedule, channels=1, latent_mean=torch.tensor([0.8])
        ),
    )
    assert found.mean().item() == pytest.approx(0.8, abs=0.02)
    assert found.std().item() == pytest.approx(0.5, abs=tolerance)


def test_auto_drift_mends_the_mean_that_noise_at_the_end_lacks():
    """Sampling from N(0, I) leaves the mean s a_T μ / sd(z_T) short; the closed-form drift takes it away."""
    schedule, seeds = ScheduleConfig(), torch.arange(8)
    network = Gaussian(mean=-3.0, deviation=1.0, schedule=schedule)
    drift = resolve(
        DriftConfig(value="auto", forward=0.0), schedule, channels=1, latent_mean=torch.tensor([-3.0])
    )
    noise = initial_noise(seeds, (1, 16, 16))
    noise = noise - noise.mean()
    sampler = SamplerConfig(steps=100, guidance_scale=1)
    plain, mended = (
        sample(network, schedule, sampler, None, noise=noise, drift=used).mean().item()
        for used in (None, drift)
    )
    assert plain - -3.0 == pytest.approx(3 * terminal_signal(schedule), rel=0.02)
    assert mended == pytest.approx(-3.0, abs=0.005)


@pytest.mark.parametrize("mode", ["first", "all", "rate"])
def test_inversion_keeps_the_image_only_if_it_drifts_symmetrically(mode):
    schedule, network = ScheduleConfig(), Gaussian(mean=0.2, deviation=0.6)
    shift = torch.tensor([0.1 if mode == "first" else 0.01])
    drift, sampler = Drift(shift, shift, mode), SamplerConfig(steps=50, guidance_scale=1)
    image = 0.2 + 0.6 * initial_noise(torch.arange(4), (1, 8, 8))

    def reconstruction_error(inverse_drift):
        noise = invert(network, schedule, sampler, None, latents=image, drift=inverse_drift, iterations=10)
        again = sample(network, schedule, sampler, None, noise=noise, drift=drift)
        return (again - image).abs().mean().item()

    assert reconstruction_error(drift) < 1e-4
    assert reconstruction_error(None) > 0.03


def test_few_steps_come_close_to_many():
    network, noise = Gaussian(mean=0.5, deviation=0.4), initial_noise(torch.arange(4), (1, 16, 16))

    def draw(name, steps):
        sampler = SamplerConfig(scheduler=name, steps=steps, guidance_scale=1)
        return sample(network, network.schedule, sampler, None, noise=noise)

    exact = draw("ddim", 1000)
    errors = [(draw("ddim", steps) - exact).abs().mean().item() for steps in (5, 20, 100)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert (draw("dpm_solver", 20) - exact).abs().mean() < errors[2]  # 20 steps as good as DDIM's 100


def test_one_centroid_for_all_makes_samples_alike():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 1, 8, 8, generator=generator)
    weights = torch.randn(16, 64, generator=generator) / 8

    def features(latents, rows=None):
        return torch.tanh((latents.flatten(1)[:, None] * weights[None]).sum(2))

    network, seeds = Mixture(centres, deviation=0.5), torch.arange(16)
    noise, final = initial_noise(seeds, (1, 8, 8)), SamplerConfig(steps=50, guidance_scale=1)
    real = features(centres[0] + 0.5 * torch.randn(500, 1, 8, 8, generator=generator))
    diversity = {}
    for choice in ("reference", "centroid"):
        found = optimise_noise(
            network,
            network.schedule,
            final,
            NoiseOptimisationConfig(),
            None,
            noise=noise,
            targets=targets_for(real[:10], choice, seeds=seeds),
            features=features,
        )
        latents = sample(network, network.schedule, final, None, noise=found.noise)
        diversity[choice] = (features(latents).std(0).mean() / real.std(0).mean()).item()
    assert diversity["centroid"] < 0.6
    assert diversity["reference"] > 0.8
