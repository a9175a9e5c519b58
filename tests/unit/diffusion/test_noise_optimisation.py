"""Noise optimisation on denoisers known in closed form: gradients, convergence, independence."""

import pytest
import torch

from counterray.diffusion.drift import Drift
from counterray.diffusion.noise_optimisation import (
    NoiseOptimisationConfig,
    _final_latents,
    _scheduler,
    optimise_noise,
)
from counterray.diffusion.sampling import SamplerConfig, initial_noise, sample
from counterray.diffusion.schedule import ScheduleConfig
from counterray.diffusion.targets import target_distance
from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from tests.unit.diffusion.toys import Gaussian, Mixture, texts

SEEDS = torch.arange(6)
NOISE = initial_noise(SEEDS, (1, 8, 8))
FINAL = SamplerConfig(steps=50, guidance_scale=1)
GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(4, 1, 8, 8, generator=GENERATOR)
WEIGHTS = torch.randn(8, 64, generator=GENERATOR) / 8


def features(latents, rows=None):
    """A small judge, computed row by row."""
    return torch.tanh((latents.flatten(1)[:, None] * WEIGHTS[None]).sum(2))


TARGETS = features(CENTRES[torch.tensor([0, 1, 2, 3, 0, 1])])


def optimise(config=None, *, rows=slice(None), network=None, condition=None, targets=TARGETS, **options):
    network = network or Mixture(CENTRES, deviation=0.5)
    return optimise_noise(
        network,
        network.schedule,
        options.pop("sampler", FINAL),
        config or NoiseOptimisationConfig(),
        condition,
        noise=NOISE[rows],
        targets=targets[rows],
        features=options.pop("features", features),
        **options,
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mode", ["straight_through", "full", "one_step", "algorithm_2"])
def test_every_mode_has_a_gradient_that_lowers_its_own_distance(mode, prediction):
    network = Mixture(CENTRES, deviation=0.5, schedule=ScheduleConfig(prediction=prediction))
    found = optimise(NoiseOptimisationConfig(mode=mode, learning_rate=0.02), network=network)
    assert (found.end < found.start).all()
    assert found.noise.dtype == torch.float32


def test_straight_through_is_the_linear_path_and_the_last_call():
    """For linear data the gradient is known: (Π a_s / a_t) × (c_z + c_f f') of the last step."""
    network = Gaussian(deviation=0.5)
    noise = NOISE[:1].clone().requires_grad_()
    schedule = network.schedule

    def slope(mode):
        config = NoiseOptimisationConfig(mode=mode)
        scheduler = _scheduler(schedule, config, None)
        latents = _final_latents(network, scheduler, config, noise, None)
        return torch.autograd.grad(latents.sum(), noise)[0].flatten()

    def factor(timestep, previous):
        squared = network.alphas[timestep]
        signal, other = squared.sqrt(), (1 - squared).sqrt()
        before = network.alphas[previous].sqrt() if previous >= 0 else torch.tensor(1.0)
        rest = (1 - before**2).sqrt()
        derivative = other / (squared * 0.25 + other**2)  # of ε in z
        return (before / signal).item(), (
            before / signal + (rest - before * other / signal) * derivative
        ).item()

    steps = [factor(999, 749), factor(749, 499), factor(499, 249), factor(249, -1)]
    full = torch.tensor([step[1] for step in steps]).prod()
    straight = torch.tensor([step[0] for step in steps[:3]]).prod() * steps[3][1]
    torch.testing.assert_close(slope("full"), full.expand(64), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(slope("straight_through"), straight.expand(64), rtol=1e-3, atol=1e-5)
    squared = network.alphas[999].item()
    printed = 1 - (1 - squared) ** 0.5 / (squared * 0.25 + 1 - squared)
    torch.testing.assert_close(slope("algorithm_2"), torch.tensor(printed).expand(64), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("mode", "grad_calls"), [("straight_through", 1), ("full", 4)])
def test_calls_that_keep_a_graph(mode, grad_calls):
    network, kept = Mixture(CENTRES, deviation=0.5), []

    def counting(noisy, timestep, condition):
        kept.append(torch.is_grad_enabled() and noisy.requires_grad)
        return network(noisy, timestep, condition)

    counting.schedule = network.schedule
    optimise(NoiseOptimisationConfig(mode=mode, iterations=1), network=counting)
    assert len(kept) == 4
    assert sum(kept) == grad_calls


def test_straight_through_beats_the_printed_algorithm():
    """The distance of the final 50-step image, same budget."""
    network, distances = Mixture(CENTRES, deviation=0.5), {}
    for mode in ("straight_through", "algorithm_2"):
        found = optimise(NoiseOptimisationConfig(mode=mode), network=network)
        final = sample(network, network.schedule, FINAL, None, noise=found.noise)
        distances[mode] = target_distance(features(final), TARGETS)
    start = target_distance(features(sample(network, network.schedule, FINAL, None, noise=NOISE)), TARGETS)
    assert distances["straight_through"].mean() < 0.4 * start.mean()
    assert distances["straight_through"].mean() < 0.5 * distances["algorithm_2"].mean()


def test_samples_do_not_know_of_each_other():
    config = NoiseOptimisationConfig(patience=3, iterations=25)
    together = optimise(config)
    assert len(together.iterations.unique()) > 1
    for row in range(len(SEEDS)):
        alone = optimise(config, rows=slice(row, row + 1))
        for name in ("noise", "start", "end", "iterations", "converged"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_converged_samples_leave_the_batch():
    network = Mixture(CENTRES, deviation=0.5)
    config = NoiseOptimisationConfig(patience=2, iterations=40, learning_rate=0.5)
    found = optimise(config, network=network)
    assert found.converged.any()
    expected = [int((found.iterations > done).sum()) for done in range(int(found.iterations.max()))]
    assert network.calls[:: config.steps] == expected
    assert expected[-1] < len(SEEDS)
    assert (found.iterations[~found.converged] == 40).all()


def test_patience_by_hand():
    """A judge that gets worse at every look: the first noise is best, and patience ends it."""
    looks = []

    def worsening(latents, rows):
        looks.append(1)
        return features(latents) + 10.0 * len(looks)

    found = optimise(NoiseOptimisationConfig(patience=5), features=worsening)
    assert found.iterations.tolist() == [6] * 6
    assert found.converged.all()
    assert torch.equal(found.noise, NOISE)
    assert torch.equal(found.start, found.end)


def test_noise_stays_on_the_gaussian_shell():
    found = optimise(NoiseOptimisationConfig(iterations=10))
    moved = (found.noise - NOISE).abs().amax(dim=(1, 2, 3)) > 0
    assert moved.any()
    torch.testing.assert_close(
        found.noise[moved].flatten(1).norm(dim=1), torch.full((int(moved.sum()),), 8.0)
    )


def test_weights_do_not_learn():
    torch.manual_seed(0)
    network = LatentDenoiser(DenoiserConfig(widths=(16, 16), head_width=8), channels=1, size=8, text_width=4)
    network.schedule = ScheduleConfig(prediction="v_prediction")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.bfloat16()
    condition, null = texts([float(seed) for seed in SEEDS]), texts([0.0])
    found = optimise(
        NoiseOptimisationConfig(iterations=4),
        network=network,
        condition=condition,
        null=null,
        sampler=SamplerConfig(guidance_scale=2.0),
    )
    assert (found.end < found.start).all()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name].bfloat16(), value) for name, value in network.state_dict().items())


def test_each_sample_keeps_its_anatomy_as_others_leave():
    anatomy = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    config = NoiseOptimisationConfig(patience=2, iterations=20)
    together = optimise(config, features=lambda latents, rows: features(latents + anatomy[rows]))
    assert len(together.iterations.unique()) > 1
    for row in range(len(SEEDS)):
        rows = slice(row, row + 1)
        alone = optimise(
            config, rows=rows, features=lambda latents, _, row=row: features(latents + anatomy[row])
        )
        assert torch.equal(alone.noise[0], together.noise[row])


def test_each_sample_keeps_its_condition_as_others_leave():
    network = Gaussian(deviation=0.6)
    condition = texts([0.5, -0.5, 1.0, -1.0, 0.0, 0.2])
    config = NoiseOptimisationConfig(patience=1, iterations=15)
    together = optimise(config, network=network, condition=condition)
    assert len(together.iterations.unique()) > 1
    for row in range(len(SEEDS)):
        rows = slice(row, row + 1)
        alone = optimise(config, network=network, condition=condition[rows], rows=rows)
        assert torch.equal(alone.noise[0], together.noise[row])


def test_drift_is_that_of_the_final_sampling():
    shift = torch.tensor([0.3])
    drift, network = Drift(shift, shift), Mixture(CENTRES, deviation=0.5)
    config = NoiseOptimisationConfig(iterations=1)
    found = optimise(config, network=network, drift=drift)
    few = sample(
        network,
        network.schedule,
        SamplerConfig(steps=4, guidance_scale=1),
        None,
        noise=NOISE,
        drift=drift,
    )
    torch.testing.assert_close(found.start, target_distance(features(few), TARGETS))


def test_repulsion_keeps_samples_of_one_target_apart():
    same = TARGETS[:1].expand(6, -1)
    spread = torch.tensor(2.0)
    network = Gaussian(deviation=0.7)
    apart, together = (
        optimise(NoiseOptimisationConfig(repulsion=repulsion), network=network, targets=same, spread=spread)
        for repulsion in (2.0, 0.0)
    )
    spreads = [
        features(sample(network, network.schedule, FINAL, None, noise=found.noise)).std(0).mean()
        for found in (apart, together)
    ]
    assert spreads[0] > 1.5 * spreads[1]


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="typical_spread"):
        optimise(NoiseOptimisationConfig(repulsion=1.0))
    with pytest.raises(ValueError, match=r"features \[6, 8\] and the targets \[6, 5\] differ"):
        optimise(targets=torch.zeros(6, 5))
    with pytest.raises(ValueError, match=r"guidance_scale = 2\.0 needs a condition"):
        optimise(sampler=SamplerConfig(guidance_scale=2.0))
