"""Denoisers whose truth is known in closed form, computed row by row so that batches cannot matter."""

from __future__ import annotations

import torch

from counterray.diffusion.schedule import ScheduleConfig, training_scheduler
from counterray.nn.text import TextStates


def texts(values, tokens=3, width=4):
    """States that all hold one value a text."""
    states = torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, tokens, width).clone()
    return TextStates(states, torch.ones(len(values), tokens, dtype=torch.bool))


class Analytic:
    """Bayes-optimal denoiser of a posterior mean E[z_0 | z_t] that a subclass knows."""

    def __init__(self, schedule=None):
        self.schedule = schedule or ScheduleConfig()
        self.alphas = training_scheduler(self.schedule).alphas_cumprod.double()
        self.calls = []

    def clean(self, noisy, signal, noise, condition):
        raise NotImplementedError

    def __call__(self, noisy, timestep, condition):
        self.calls.append(len(noisy))
        squared = self.alphas.to(noisy.dtype)[timestep].reshape(-1, 1, 1, 1)
        signal, noise = squared.sqrt(), (1 - squared).sqrt()
        clean = self.clean(noisy, signal, noise, condition)
        epsilon = (noisy - signal * clean) / noise
        if self.schedule.prediction == "epsilon":
            return epsilon
        return signal * epsilon - noise * clean


class Gaussian(Analytic):
    """Data N(mean, deviation²) in each pixel; a condition's first state is added to the mean."""

    def __init__(self, mean=0.0, deviation=1.0, schedule=None):
        super().__init__(schedule)
        self.mean, self.deviation = mean, deviation

    def clean(self, noisy, signal, noise, condition):
        mean = self.mean
        if condition is not None:
            mean = mean + condition.states[:, 0, 0].reshape(-1, 1, 1, 1)
        gain = signal * self.deviation**2 / (signal**2 * self.deviation**2 + noise**2)
        return mean + gain * (noisy - signal * mean)


class Mixture(Analytic):
    """Data around a few centres, equally likely: a denoiser that is not linear."""

    def __init__(self, centres, deviation=0.3, schedule=None):
        super().__init__(schedule)
        self.centres, self.deviation = centres, deviation

    def clean(self, noisy, signal, noise, condition):
        variance = signal**2 * self.deviation**2 + noise**2
        rest = noisy[:, None] - signal[:, None] * self.centres[None]
        distance = rest.square().sum(dim=(2, 3, 4)) / variance.flatten(1)
        weight = torch.softmax(-distance / 2, dim=1)[:, :, None, None, None]
        gain = signal * self.deviation**2 / variance
        return (weight * (self.centres[None] + gain[:, None] * rest)).sum(1)
