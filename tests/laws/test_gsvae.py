"""What must hold of gsvae whatever it has learnt."""

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from counterray.bundle import write_bundle
from counterray.causal.mechanism import Mechanism
from counterray.models.gsvae.bank import PathologyBank
from counterray.models.gsvae.mechanism import GSVAEMechanism
from counterray.models.gsvae.network import GSVAENetwork, NetworkConfig, swap
from counterray.models.gsvae.stages import load
from counterray.storage import resolve
from counterray.training.loop import train
from tests.small_gsvae import (
    FINDINGS,
    INFO,
    SIZE,
    UNSUPERVISED,
    judge_bundles,
    make_batch,
    make_stage,
    parents_of,
)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return judge_bundles(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def trained(judges):
    """Ten steps, so that T is no longer the identity and nothing is at its initial value."""
    stage = make_stage()
    return stage, train(stage, data=INFO, batches=lambda: [make_batch()], steps=10, inputs=judges)


def test_one_channel_is_a_plain_vae():
    stage = make_stage(
        {"latent_channels": 1, "transformer_layers": 0}, {**UNSUPERVISED, "classification": 0.0}
    )
    torch.manual_seed(0)
    network, batch = stage.build({}, INFO), make_batch()
    assert stage.inputs == {}
    torch.manual_seed(1)
    losses = stage.loss(network, batch, step=4)  # a group step, if there were group losses

    torch.manual_seed(1)
    mean, log_variance = network.encoder(batch.image).chunk(2, dim=1)
    latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    reconstruction = network.decoder(latent)
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
    error = ((reconstruction - batch.image) ** 2).mean()
    ssim = structural_similarity_index_measure(reconstruction, batch.image, data_range=2.0)
    expected = error + 0.01 * (1 - ssim) + 0.1 * kl
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-6)
    assert latent.shape == (8, 1, 8, 8)


def test_swap_twice_is_identity():
    latent = torch.randn(6, 4, 8, 8)
    partner = torch.tensor([1, 0, 5, 4, 3, 2])
    once = swap(latent, partner)
    assert not torch.equal(once, latent)
    assert torch.equal(once[:, :-1], latent[:, :-1])
    assert torch.equal(swap(once, partner), latent)


def test_pathology_there_and_back_is_identity(trained):
    mechanism = GSVAEMechanism(trained[1], trained[0].config, finding_names=FINDINGS)
    batch = make_batch()
    own = mechanism.abduct(batch.image, parents_of(batch))
    there = mechanism.with_pathology(own, batch.image.flip(0))
    back = mechanism.with_pathology(there, batch.image)
    assert not torch.equal(mechanism.predict(there, {}), mechanism.predict(own, {}))
    assert torch.equal(mechanism.predict(back, {}), mechanism.predict(own, {}))


def test_no_layers_are_the_identity():
    config = NetworkConfig(widths=(8, 16), transformer_layers=0)
    network = GSVAENetwork(config, image_size=SIZE, findings=2)
    latent = torch.randn(2, 4, 8, 8)
    assert network.transformer(latent) is latent
    assert not list(network.transformer.parameters())
    torch.testing.assert_close(network.decode(latent), network.decoder(latent))


def test_saved_and_loaded_is_bitwise_equal(trained, tmp_path):
    stage, network = trained
    bundle = write_bundle(
        resolve(tmp_path / "bundle"),
        method="gsvae",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(network),
        data_fingerprint="small",
    )
    loaded, image = load(bundle), make_batch().image
    assert not loaded.training
    partner = torch.arange(8).flip(0)
    before, after = network(image, partner, sample=False), loaded(image, partner, sample=False)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unchanged_parents_give_the_reconstruction(trained):
    stage, network = trained
    batch = make_batch()
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    assert isinstance(mechanism, Mechanism)
    parents = parents_of(batch)
    with torch.no_grad():
        reconstruction = network(batch.image, sample=False)["reconstruction"].clamp(-1, 1)
    assert torch.equal(mechanism.predict(mechanism.abduct(batch.image, parents), parents), reconstruction)


def test_finding_done_and_undone_returns(trained):
    stage, network = trained
    batch = make_batch()
    bank = PathologyBank.build(network, [make_batch(16, seed=5)])
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS, bank=bank)
    parents = parents_of(batch)
    noise = mechanism.abduct(batch.image, parents)
    other = {**parents, "finding.edema": 1 - parents["finding.edema"]}
    changed = mechanism.predict(noise, other)
    assert (changed - mechanism.predict(noise, parents)).abs().amax(dim=(1, 2, 3)).min() > 0
    # The exogenous part is untouched by an intervention, so that the factual parents give the image back.
    assert torch.equal(mechanism.predict(noise, parents), mechanism.predict(noise, {}))


def test_group_losses_on_every_fifth_step_and_exactly_zero_between(judges):
    stage = make_stage()
    network, batch = stage.build(judges, INFO), make_batch()
    with torch.no_grad():
        parts = [stage.loss(network, batch, step).parts for step in range(11)]
    for role in ("identity", "pathology"):
        active = [step for step, values in enumerate(parts) if values[role] != 0]
        assert active == [4, 9]


def test_total_is_the_weighted_sum(judges):
    stage = make_stage(weights={"kl": 0.3, "classification": 2.0, "identity": 0.7, "pathology": 1.1})
    network = stage.build(judges, INFO)
    losses = stage.loss(network, make_batch(), step=4)
    weights = {"reconstruction": 1.0, "kl": 0.3, "classification": 2.0, "identity": 0.7, "pathology": 1.1}
    assert weights.keys() == losses.parts.keys()
    expected = sum(weight * losses.parts[name] for name, weight in weights.items())
    torch.testing.assert_close(losses.total.detach(), expected)


@pytest.mark.parametrize("role", ["identity", "pathology"])
def test_judges_teach_but_do_not_learn(judges, role):
    stage = make_stage(weights={**UNSUPERVISED, role: 1.0})
    network = stage.build({role: judges[role]}, INFO)
    assert set(stage.frozen) == {role}
    before = {name: value.clone() for name, value in stage.frozen[role].state_dict().items()}
    output = network(make_batch().image, torch.arange(8).roll(1))
    stage._group_losses(make_batch().image, output["swapped"], torch.arange(8).roll(1))[role].backward()
    gradient = network.encoder[0].weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in stage.frozen[role].parameters())

    train(stage, data=INFO, batches=lambda: [make_batch()], steps=6, inputs={role: judges[role]})
    after = stage.frozen[role].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bound_is_the_training_loss_up_to_a_factor():
    """-ELBO = HW / (2 s) (MSE + α KL) + HW / 2 log(2 π s), with the variance s that the weights imply."""
    stage = make_stage(weights={**UNSUPERVISED, "classification": 0.0, "ssim": 0.0, "kl": 0.05})
    network, batch = stage.build({}, INFO), make_batch()
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    torch.manual_seed(2)
    bound = mechanism.loss(batch.image, {})
    torch.manual_seed(2)
    training = stage.loss(network, batch, step=0).total
    variance = 0.05 * SIZE**2 / (2 * 4 * 8 * 8)
    expected = SIZE**2 / 2 * (training / variance + math.log(2 * math.pi * variance))
    assert bound.shape == (8,)
    torch.testing.assert_close(bound.mean(), expected, rtol=1e-5, atol=1e-2)


def test_training_is_repeatable(judges):
    runs = [
        train(make_stage(), data=INFO, batches=lambda: [make_batch()], steps=6, inputs=judges, seed=3)
        for _ in range(2)
    ]
    states = [run.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
