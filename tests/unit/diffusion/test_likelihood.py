"""The diffusion's bound where it is known: an exact denoiser of Gaussian latents."""

import pytest
import torch

from counterray.diffusion.likelihood import variational_bound
from counterray.diffusion.schedule import ScheduleConfig, training_scheduler
from tests.unit.diffusion.toys import Gaussian


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_mean_of_an_exact_denoiser_is_that_of_its_posterior_variance(prediction):
    """E‖z - ẑ‖² is the posterior's variance v b² / (a² v + b²), weighed and summed over timesteps."""
    # Few timesteps: of many, the first weighs so much that a mean over draws of t would vary.
    schedule = ScheduleConfig(timesteps=10, beta_start=0.05, beta_end=0.3, prediction=prediction)
    variance = 0.25
    denoiser = Gaussian(deviation=variance**0.5, schedule=schedule)
    squared = training_scheduler(schedule).alphas_cumprod.double()
    ratio = squared / (1 - squared)
    error = variance * (1 - squared) / (squared * variance + 1 - squared)
    expected = 0.5 * ((ratio[:-1] - ratio[1:]) * error[1:]).sum() * 16
    torch.manual_seed(0)
    latents = variance**0.5 * torch.randn(40_000, 1, 4, 4)
    bound = variational_bound(denoiser, schedule, latents, None)
    assert bound.shape == (40_000,)
    assert float(bound.mean()) == pytest.approx(float(expected), rel=0.03)
