"""The denoiser's size, its reading of texts, and what it refuses."""

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.diffusion.unet import DenoiserConfig, LatentDenoiser
from counterray.nn.text import TextStates

PAPER = {"layers_per_block": 2, "norm_groups": 32, "head_width": 64}


def millions(config, **shape):
    with torch.device("meta"):
        network = LatentDenoiser(config, **shape)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize(("widths", "expected"), [((192, 384, 576), 148.34), ((128, 256, 384), 67.80)])
def test_the_papers_sizes(widths, expected):
    config = DenoiserConfig(widths=widths, **PAPER)
    assert millions(config, channels=1, size=64, text_width=768) == pytest.approx(expected, abs=0.01)


def test_the_default_is_light():
    assert 1 <= millions(DenoiserConfig(), channels=1, size=16, text_width=128) <= 2


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = DenoiserConfig(widths=(16, 32), head_width=16)
    return LatentDenoiser(config, channels=2, size=8, text_width=6).eval().requires_grad_(False)


def condition(batch=3, tokens=5):
    generator = torch.Generator().manual_seed(1)
    present = torch.ones(batch, tokens, dtype=torch.bool)
    return TextStates(torch.randn(batch, tokens, 6, generator=generator), present)


NOISY = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def test_output_and_timesteps(network):
    output = network(NOISY, torch.tensor([1, 500, 999]), condition())
    assert output.shape == NOISY.shape
    assert output.dtype == torch.float32
    every = network(NOISY, torch.full((3,), 500), condition())
    assert torch.equal(network(NOISY, torch.tensor(500), condition()), every)
    assert not torch.equal(every[0], output[0])


def test_text_matters_and_padding_does_not(network):
    text, time = condition(), torch.tensor(300)
    output = network(NOISY, time, text)
    assert (network(NOISY, time, text[torch.tensor([1, 2, 0])]) - output).abs().max() > 1e-4
    text.present[:, 3:] = False
    short = network(NOISY, time, TextStates(text.states[:, :3], text.present[:, :3]))
    text.states[:, 3:] = 100.0
    torch.testing.assert_close(network(NOISY, time, text), short, rtol=0, atol=1e-5)


def test_bfloat16_weights_give_float32(network):
    half = LatentDenoiser(
        DenoiserConfig(widths=(16, 32), head_width=16), channels=2, size=8, text_width=6
    ).bfloat16()
    half.load_state_dict(network.state_dict())
    output = half.eval()(NOISY, torch.tensor(300), condition())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, network(NOISY, torch.tensor(300), condition()), rtol=0.05, atol=0.05)


def test_gradient_reaches_latents_and_text():
    torch.manual_seed(0)
    network = LatentDenoiser(DenoiserConfig(widths=(16, 32)), channels=2, size=8, text_width=6)
    noisy, text = NOISY.clone().requires_grad_(), condition()
    text.states.requires_grad_()
    network(noisy, torch.tensor(300), text).square().sum().backward()
    assert noisy.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert text.states.grad.abs().amax(dim=(1, 2)).min() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_state_dict_names(network):
    names = set(network.state_dict())
    assert {
        "unet.conv_in.weight",
        "unet.time_embedding.linear_1.weight",
        "unet.down_blocks.0.resnets.0.conv1.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "unet.mid_block.attentions.0.proj_in.weight",
        "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v.weight",
        "unet.conv_out.bias",
    } <= names
    assert not any("down_blocks.0.attentions" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": [32]}, "widths"),
        ({"widths": [32, 60]}, r"widths \[60\] must be positive multiples of norm_groups = 8"),
        ({"widths": [32, 64], "head_width": 48}, r"widths \[64\] must be .* head_width = 48"),
        ({"widths": [0, 64]}, r"widths \[0\]"),
    ],
)
def test_impossible_sizes(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(DenoiserConfig, settings)


def test_latents_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"latents' size \(10\) must be divisible by .* 4; use fewer than 3"):
        LatentDenoiser(DenoiserConfig(), channels=1, size=10, text_width=6)


def test_no_text_at_all(network):
    with pytest.raises(ValueError, match="empty text"):
        network(NOISY, torch.tensor(3), None)
