"""Our loop against diffusers' own, unmodified Stable Diffusion pipeline: the same bits, drift included."""

import warnings

import pytest
import torch

from counterray.diffusion.drift import Drift
from counterray.diffusion.sampling import SamplerConfig, initial_noise, sample, scheduler_for
from counterray.diffusion.schedule import ScheduleConfig
from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.nn.text import TextStates

SEEDS = torch.tensor([3, 4])
SCHEDULE = ScheduleConfig(prediction="v_prediction")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = DenoiserConfig(widths=(16, 16), head_width=8)
    return LatentDenoiser(config, channels=4, size=8, text_width=8).eval().requires_grad_(False)


def by_pipeline(network, scheduler, condition, null, scale):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, of its pipelines' old settings
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
            text_encoder=None,
            tokenizer=None,
            unet=network.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt_embeds=condition.states,
            negative_prompt_embeds=null.states.expand(2, -1, -1),
            num_inference_steps=10,
            guidance_scale=scale,
            generator=[torch.Generator().manual_seed(int(seed)) for seed in SEEDS],
            output_type="latent",
            height=8,
            width=8,
        ).images


@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "ddpm"])
@pytest.mark.parametrize("steps", [None, "first", "all"])
def test_the_pipeline_draws_the_same(network, name, steps):
    shift = torch.tensor([0.1, 0.0, -0.1, 0.2])
    drift = None if steps is None else Drift(shift, shift, steps)
    sampler = SamplerConfig(scheduler=name, steps=10, guidance_scale=3.0)
    torch.manual_seed(1)
    condition = TextStates(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
    null = TextStates(torch.zeros(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
    expected = by_pipeline(network, scheduler_for(SCHEDULE, sampler, drift), condition, null, 3.0)
    found = sample(
        network,
        SCHEDULE,
        sampler,
        condition,
        noise=initial_noise(SEEDS, (4, 8, 8)),
        seeds=SEEDS,
        null=null,
        drift=drift,
    )
    assert torch.equal(found, expected)
