"""Shapes, sizes that do not fit, the interaction T, and precision."""

import pytest
import torch

from counterray.models.gsvae.network import GSVAENetwork, NetworkConfig, swap
from counterray.models.gsvae.transformer import ChannelTransformer

SMALL = {"widths": (8, 16), "transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}


def network(image_size=32, findings=3, **settings):
    return GSVAENetwork(NetworkConfig(**{**SMALL, **settings}), image_size=image_size, findings=findings)


def interaction(**settings):
    sizes = {"channels": 3, "latent_size": 8, "patch_size": 2, "layers": 2, "width": 16, "heads": 2}
    return ChannelTransformer(**{**sizes, **settings})


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(("widths", "factor"), [((8,), 2), ((8, 16), 4), ((8, 8, 16), 8)])
def test_shapes(channels, widths, factor):
    net = network(latent_channels=channels, widths=widths)
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    output = net(image, torch.tensor([1, 2, 0]))
    latent = (3, channels, 32 // factor, 32 // factor)
    assert output["mean"].shape == output["log_variance"].shape == latent
    assert output["reconstruction"].shape == output["swapped"].shape == image.shape
    assert output["finding_logits"].shape == (3, 3)
    assert "swapped" not in net(image)


def test_default_has_64_tokens_a_channel_at_the_papers_size():
    net = GSVAENetwork(NetworkConfig(), image_size=256, findings=14)
    assert net.latent_shape == (4, 64, 64)
    assert net.transformer.patch_size == 8
    assert net.transformer.position_embedding.shape[1] == 64
    assert 2.5e6 < sum(p.numel() for p in net.transformer.parameters()) < 3.5e6


def test_transformer_starts_as_identity_and_then_mixes_channels():
    torch.manual_seed(0)
    transformer, latent = interaction(), torch.randn(2, 3, 8, 8)
    assert torch.equal(transformer(latent), latent)
    torch.nn.init.normal_(transformer.out.weight)
    changed = latent.clone()
    changed[:, 2, 0, 0] += 1.0
    difference = (transformer(changed) - transformer(latent)).abs().amax(dim=(0, 2, 3))
    assert (difference[:2] > 1e-4).all()  # a pathology position moves the identity channels' output


def test_patches_and_image_are_inverse():
    transformer, latent = interaction(), torch.randn(2, 3, 8, 8)
    patches = transformer._patches(latent)
    assert torch.equal(patches[1, 2, 5], latent[1, 2, 2:4, 2:4].flatten())  # patch (1, 1) of a 4 x 4 grid
    assert torch.equal(transformer._image(patches.flatten(1, 2)), latent)


def test_findings_depend_on_the_pathology_channel_alone():
    net, latent = network(), torch.randn(2, 4, 8, 8)
    logits = net.predict_findings(latent)
    other_identity = torch.cat([torch.randn(2, 3, 8, 8), latent[:, -1:]], dim=1)
    assert torch.equal(net.predict_findings(other_identity), logits)
    assert not torch.equal(net.predict_findings(swap(latent, torch.tensor([1, 0]))), logits)


def test_literal_algorithm_decodes_swapped_latents_without_the_transformer():
    torch.manual_seed(0)
    net, literal = network(), network(swap_through_transformer=False)
    torch.nn.init.normal_(net.transformer.out.weight)
    literal.load_state_dict(net.state_dict())
    image, partner = torch.rand(2, 1, 32, 32), torch.tensor([1, 0])
    through, without = net(image, partner, sample=False), literal(image, partner, sample=False)
    assert torch.equal(through["reconstruction"], without["reconstruction"])
    swapped = swap(net.encode(image)[0], partner)
    assert torch.equal(without["swapped"], literal.decoder(swapped))
    assert torch.equal(through["swapped"], net.decode(swapped))
    assert not torch.allclose(through["swapped"], without["swapped"])


def test_bfloat16_weights_give_float32_outputs():
    net = network().to(torch.bfloat16)
    output = net(torch.rand(2, 1, 32, 32), torch.tensor([1, 0]))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in output.values())


def test_sampling_follows_the_global_random_state():
    net, image = network(), torch.rand(2, 1, 32, 32)
    torch.manual_seed(1)
    first = net(image)["reconstruction"]
    torch.manual_seed(1)
    assert torch.equal(net(image)["reconstruction"], first)
    assert not torch.equal(net(image)["reconstruction"], first)
    assert torch.equal(net(image, sample=False)["mean"], net(image)["mean"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 34}, "image_size = 34 is not divisible by 4"),
        ({"patch_size": 3}, "patch_size = 3 does not divide the latents' edge 8"),
        ({"transformer_heads": 3}, "transformer_heads = 3 does not divide"),
        ({"findings": 0}, "needs at least 1"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        network(**settings)
