"""What must hold of mine_ldm and its baselines whatever they have learnt."""

import pickle

import pytest
import torch

from counterray import catalog
from counterray.causal.mechanism import Mechanism
from counterray.config import validate
from counterray.models.mine_ldm.generator import open_conditional_vae, open_ldm
from counterray.models.mine_ldm.mechanism import AttributeMechanism
from tests.predictor_toys import DATA, batch
from tests.small_mine_ldm import (
    ATTRIBUTES,
    chain,
    conditional_bundle,
    ldm_stage,
    perturbation_stage,
    trained,
    vae_stage,
)

STAGES = {
    "mine_vae": vae_stage,
    "mine_perturbation": perturbation_stage,
    "mine_ldm": ldm_stage,
    "mine_ldm without T": lambda: ldm_stage(perturbed=False),
    "β-VAE": lambda: vae_stage(attributes=ATTRIBUTES, weights={"perceptual": 0.0, "kl": 1.0}),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"), steps=7)


@pytest.fixture(scope="module", params=["mine_ldm", "β-VAE"])
def mechanism(request, bundles, tmp_path_factory):
    if request.param == "mine_ldm":
        return AttributeMechanism(open_ldm(bundles["ldm"]))
    return AttributeMechanism(open_conditional_vae(conditional_bundle(tmp_path_factory.mktemp("vae") / "b")))


@pytest.mark.parametrize("name", STAGES)
def test_training_repeats_from_the_global_seed(name, bundles):
    weights = []
    for _ in range(2):
        stage = STAGES[name]()
        inputs = {role: bundles[role] for role in stage.inputs}
        weights.append(trained(stage, inputs, steps=7, seed=5).state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_its_config(name):
    stage = STAGES[name]()
    copy = pickle.loads(pickle.dumps(stage))
    assert copy.config == stage.config
    assert validate(type(stage.config), stage.config.model_dump(mode="json")) == stage.config
    assert catalog.entry(stage.name).method == "mine_ldm"


@pytest.mark.parametrize("role", ["vae", "perturbation", "ldm"])
def test_saved_and_loaded_is_bitwise_equal(role, bundles):
    bundle = bundles[role]
    ours, again = catalog.load_model(bundle), catalog.load_model(bundle)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training
    stored = bundle.tensors()
    state = again.denoiser.state_dict() if role == "ldm" else again.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in stored)


def test_a_generators_bundle_holds_its_parents_weights(bundles):
    model = open_ldm(bundles["ldm"])
    for role, part in (("vae", model.vae), ("perturbation", model.perturbation)):
        theirs = bundles[role].tensors()
        assert all(torch.equal(theirs[name], value) for name, value in part.state_dict().items())


def test_it_is_a_mechanism_whose_null_intervention_repeats(mechanism):
    assert isinstance(mechanism, Mechanism)
    data = batch(5, 2)
    noise = mechanism.abduct(data.image, data.attributes)
    null = mechanism.predict(noise, data.attributes)
    assert null.shape == data.image.shape
    assert torch.equal(null, mechanism.predict(noise, {}))
    assert torch.equal(null, mechanism.predict(mechanism.abduct(data.image, data.attributes), {}))


def test_an_attribute_done_and_undone_returns(mechanism):
    data = batch(5, 2)
    noise = mechanism.abduct(data.image, data.attributes)
    there = mechanism.predict(noise, {"sex": 1 - data.attributes["sex"]})
    back = mechanism.predict(noise, {"sex": data.attributes["sex"]})
    assert float((there - back).abs().max()) > 0
    assert torch.equal(back, mechanism.predict(noise, {}))


def test_samples_follow_their_generator_and_bounds_are_finite(mechanism):
    data = batch(5, 2)

    def drawn(seed):
        return mechanism.sample(data.attributes, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).abs().max() <= 1
    bound = mechanism.loss(data.image, data.attributes)
    assert bound.shape == (5,)
    assert bound.isfinite().all()
    with pytest.raises(ValueError, match="at least one parent"):
        mechanism.sample({}, torch.Generator())


def test_the_image_size_is_the_datas(mechanism):
    assert mechanism.model.image_size == DATA.image_size
