"""The autoencoder's losses, the stages, their bundles, and the edits of attributes that they make."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.evaluation.metric import UnscorableError
from counterray.evaluation.opening import open_editor, open_generator
from counterray.models.generator import Edit, EditError
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.generator import GenerationConfig, open_conditional_vae, open_ldm
from counterray.models.mine_ldm.losses import VAELossWeights, vae_losses
from counterray.models.mine_ldm.mechanism import AttributeMechanism
from counterray.models.mine_ldm.stages import MineLDMConfig
from counterray.models.mine_ldm.vae import AttributeVAE, Decoded, Posterior, VAENetworkConfig
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.nn.backbone import BackboneConfig
from tests.predictor_toys import DATA, batch, with_unknown
from tests.small_mine_ldm import (
    ATTRIBUTES,
    NETWORK,
    chain,
    codes_of,
    conditional_bundle,
    ldm_stage,
    perturbation_stage,
    saved,
    trained,
    vae_stage,
)

SPACE = AttributeSpace({"scanner": ("a", "b", "c"), "sex": ("female", "male")})
SEEDS = torch.arange(6)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    made = chain(folder, steps=12)
    stage = ldm_stage(perturbed=False)
    inputs = {"vae": made["vae"]}
    made["cldm"] = saved(folder / "cldm", stage, trained(stage, inputs, steps=12), inputs)
    made["beta_vae"] = conditional_bundle(folder / "beta_vae", steps=12)
    return made


EDITORS = ("ldm", "cldm", "beta_vae")
"""Roles of the bundles that set attributes: the method and its two baselines."""


# Attributes.


def test_levels_as_numbers():
    values = {"sex": torch.tensor([1.0, math.nan]), "age": torch.tensor([30.0, 40.0])}
    codes = SPACE.codes(values, like=torch.zeros(2))
    assert codes.isnan().tolist() == [[True, False], [True, True]]
    assert SPACE.one_hot(codes).tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert AttributeSpace.of(("sex", "scanner"), DATA) == SPACE
    assert AttributeSpace.read(SPACE.described()) == SPACE
    with pytest.raises(ValueError, match=r"scanner = 3 is no code .* 0 to 2: a, b, c"):
        SPACE.codes({"scanner": torch.tensor([3.0, 0.0])}, like=torch.zeros(2))


@pytest.mark.parametrize("name", ["site", "age", "race"])
def test_attributes_without_two_levels_are_refused(name):
    with pytest.raises(ValueError, match=rf"asks for {name}.*scanner"):
        AttributeSpace.of((name,), DATA)


# The autoencoder.


def test_the_loss_by_hand():
    """Both resolutions at 2 : 1 of (L1 + 1 - SSIM), and β of the divergence over the pixels."""
    torch.manual_seed(0)
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    output = (image + 0.2).clamp(-1, 1)
    half = functional.interpolate(image, size=16, mode="area") - 0.1
    posterior = Posterior(torch.full((3, 2, 4, 4), 2.0), torch.zeros(3, 2, 4, 4))
    weights = VAELossWeights(perceptual=0.0, kl=0.5)
    total, parts = vae_losses(image, posterior, Decoded(output, half), weights, None)
    small = functional.interpolate(image, size=16, mode="area")
    expected = sum(
        share
        * ((one - other).abs().mean() + 1 - structural_similarity_index_measure(one, other, data_range=2.0))
        for share, one, other in ((2 / 3, output, image), (1 / 3, half, small))
    )
    divergence = 32 * 2.0**2 / 2
    assert float(parts["kl"]) == pytest.approx(divergence)
    assert float(total) == pytest.approx(float(expected) + 0.5 * divergence / 32**2, abs=1e-4)


def test_the_judge_teaches_but_does_not_learn(tmp_path):
    judge_stage = ClassifierStage(
        ClassifierConfig(backbone=BackboneConfig(widths=(8, 16), blocks=(1, 1)), findings=("fracture",))
    )
    judge = saved(tmp_path / "judge", judge_stage, judge_stage.build({}, DATA))
    stage = vae_stage(weights={"absolute": 0.0, "ssim": 0.0, "kl": 0.0, "perceptual": 1.0})
    assert stage.inputs == {"judge": "classifier"}
    module = stage.build({"judge": judge}, DATA)
    stage.loss(module, batch(4, 0), 0).total.backward()
    assert all(parameter.grad is not None for parameter in module.decoder.parameters())
    assert not any(parameter.requires_grad for parameter in stage.frozen["judge"].parameters())
    with pytest.raises(KeyError, match=r"'classifier' as input 'judge'.*perceptual=0"):
        stage.build({}, DATA)


def test_latents_come_out_with_mean_0_and_variance_1():
    torch.manual_seed(0)
    network = AttributeVAE(VAENetworkConfig(**NETWORK), image_size=32)
    image = batch(32, 0).image
    for _ in range(3):
        network(image)
    network.eval()
    mean = network.encode(image).mean.detach()
    standard = network.standardise(mean)
    assert float(standard.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((standard.var((0, 2, 3)) - 1).abs().max()) < 0.02
    torch.testing.assert_close(network.restore(standard), mean, atol=1e-5, rtol=0)


def test_published_sizes():
    network = AttributeVAE(VAENetworkConfig(), image_size=64)
    assert network.latent_shape == (8, 8, 8)
    decoded = network.decode_all(torch.zeros(1, 8, 8, 8))
    assert decoded.image.shape == (1, 1, 64, 64)
    assert decoded.half.shape == (1, 1, 32, 32)
    with pytest.raises(ValidationError, match="2 at least once"):
        VAENetworkConfig(widths=(8, 8), strides=(1, 1))
    with pytest.raises(ValueError, match="60 is not divisible by 8"):
        AttributeVAE(VAENetworkConfig(), image_size=60)


# The stages.


def test_validation_is_repeatable_and_previews_are_images(bundles):
    inputs = {"vae": bundles["vae"], "perturbation": bundles["perturbation"]}
    for stage in (vae_stage(), perturbation_stage(), ldm_stage(), vae_stage(attributes=ATTRIBUTES)):
        given = {role: inputs[role] for role in stage.inputs}
        torch.manual_seed(0)
        module = stage.build(given, DATA)
        state = torch.get_rng_state()
        first = stage.validate(module, [batch(8, 3)])
        assert torch.equal(torch.get_rng_state(), state)
        assert stage.validate(module, [batch(8, 3)]) == first
        assert stage.monitor in first
        for grid in stage.preview(module, batch(8, 3)).values():
            assert grid.shape == (8, 1, 32, 32)
            assert grid.abs().max() <= 1
        with pytest.raises(ValueError, match="validation split"):
            stage.validate(module, [])


def test_dropping_the_condition_hides_the_attributes(bundles):
    stage = ldm_stage(condition_dropout=0.999999)
    inputs = {role: bundles[role] for role in stage.inputs}
    module = trained(stage, inputs)
    one = batch(8, 0)
    other = replace(one, attributes={**one.attributes, "sex": 1 - one.attributes["sex"]})
    losses = []
    for data in (one, other):
        torch.manual_seed(3)
        losses.append(float(stage.loss(module, data, 0).total.detach()))
    assert losses[0] == losses[1]


def test_inputs_that_do_not_belong_together_are_refused(bundles, tmp_path):
    vae, perturbation = bundles["vae"], bundles["perturbation"]
    stage = vae_stage()
    other = saved(tmp_path / "vae", stage, trained(stage, seed=9))
    with pytest.raises(BundleError, match=r"trained on another vae than inputs\.vae"):
        ldm_stage().build({"vae": other, "perturbation": perturbation}, DATA)
    with pytest.raises(ValueError, match="takes out scanner, sex; train both with the same"):
        ldm_stage(attributes=("sex",)).build({"vae": vae, "perturbation": perturbation}, DATA)
    with pytest.raises(KeyError, match="perturbed=false"):
        ldm_stage().build({"vae": vae}, DATA)
    with pytest.raises(KeyError, match="'mine_vae' as input 'vae'"):
        perturbation_stage().build({}, DATA)
    with pytest.raises(ValueError, match="told scanner, sex: it is a generator of its own"):
        perturbation_stage().build({"vae": bundles["beta_vae"]}, DATA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 5}, "below the sampler's last timestep"),
        ({"sampler": {"scheduler": "dpm_solver", "steps": 10}}, "cannot begin in between"),
        ({"abduction": {"noise": "inverted"}, "sampler": {"steps": 10, "eta": 1.0}}, "deterministic sampler"),
    ],
)
def test_samplers_that_cannot_begin_at_t0_are_refused(settings, message, bundles):
    with pytest.raises(ValidationError, match=message):
        MineLDMConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        open_ldm(bundles["ldm"], GenerationConfig(**settings))


# Edits.


@pytest.mark.parametrize("role", EDITORS)
def test_edits_follow_their_seeds_and_not_the_batch(role, bundles):
    generator, data = open_generator(bundles[role]), batch(6, 5)
    edit = Edit(do={"sex": "male"})
    together = generator.edit(data, edit, seeds=SEEDS)
    assert together.shape == (6, 1, 32, 32)
    assert together.abs().max() <= 1
    for row in (0, 4):
        alone = generator.edit(data.select(torch.tensor([row])), edit, seeds=SEEDS[[row]])
        assert float((alone[0] - together[row]).abs().max()) < 1e-5
    assert torch.equal(generator.edit(data, Edit(do={"sex": 1}), seeds=SEEDS), together)
    seeded = not torch.equal(generator.edit(data, edit, seeds=SEEDS + 50), together)
    assert seeded == (role != "beta_vae")


@pytest.mark.parametrize("role", EDITORS)
def test_several_attributes_are_one_intervention_and_the_null_one_takes_the_same_path(role, bundles):
    generator, data = open_generator(bundles[role]), batch(6, 5)
    both = generator.edit(data, Edit(do={"sex": "male", "scanner": "c"}), seeds=SEEDS)
    sex = generator.edit(data, Edit(do={"sex": "male"}), seeds=SEEDS)
    assert float((both - sex).abs().max()) > 1e-5
    men = data.attributes["sex"] == 1
    model = generator.model
    noise = model.abduct(data.image, codes_of(data))
    null = model.render(noise, codes_of(data), seeds=SEEDS)
    torch.testing.assert_close(sex[men], null[men], atol=1e-5, rtol=0)


@pytest.mark.parametrize("role", EDITORS)
def test_what_cannot_be_set_is_named(role, bundles):
    generator, data = open_generator(bundles[role]), batch(6, 5)

    def refused(message, **what):
        with pytest.raises(EditError, match=message):
            generator.edit(data, Edit(**what), seeds=SEEDS)

    refused(r"do race: no such attribute\. Attributes that can be set: scanner, sex", do={"race": 1})
    refused(r"do sex=other: no such level\. There are: female \(0\), male \(1\)", do={"sex": "other"})
    refused(r"do scanner=3.*a \(0\), b \(1\), c \(2\)", do={"scanner": 3})
    refused(r"finding\.edema: no such finding\. There are: none that can be set", do={"finding.edema": 1})
    refused("An empty edit: set an attribute, such as scanner=c")
    refused("knows no words", prompt="A man.")
    with pytest.raises(EditError, match="no pathology from donors"):
        generator.edit(data, Edit(), seeds=SEEDS, donor=data)


def test_an_edit_is_checked_before_any_generator_sees_it():
    with pytest.raises(EditError, match="to a level, by name or by code"):
        Edit(do={"sex": 0.5})
    with pytest.raises(EditError, match="findings can be set to 0 or 1"):
        Edit(do={"finding.edema": 2})
    with pytest.raises(EditError, match="severity goes with a finding"):
        Edit(do={"sex": "male"}, severity="mild")
    mixed = Edit(do={"finding.edema": 1, "sex": "male"})
    assert mixed.findings == {"edema": 1.0}
    assert mixed.codes(SPACE.levels) == {"sex": 1}
    with pytest.raises(EditError, match=r"do sex: no such attribute.*none \(findings"):
        mixed.require(("edema",))


def test_an_unknown_attribute_may_be_set(bundles):
    generator, data = open_generator(bundles["ldm"]), batch(6, 5)
    unknown = replace(data, attributes=with_unknown(data.attributes, "sex", range(6)))
    assert generator.edit(unknown, Edit(do={"sex": "male"}), seeds=SEEDS).isfinite().all()


@pytest.mark.parametrize("role", EDITORS)
def test_the_editor_of_an_evaluation_sets_the_targets_attributes(role, bundles):
    data = batch(6, 5)
    target = replace(data, attributes={**data.attributes, "sex": torch.ones(6)})
    edit = open_editor(bundles[role])
    changed, null = edit(data.image, data, target), edit(data.image, data, data)
    same = data.attributes["sex"] == 1
    torch.testing.assert_close(changed[same], null[same], atol=1e-5, rtol=0)
    assert float((changed - null)[~same].abs().max()) > 1e-5


@pytest.mark.parametrize("noise", ["inverted", "fresh"])
def test_with_its_residual_a_null_intervention_gives_back_the_very_image(bundles, noise):
    data = batch(6, 5)
    errors = []
    for residual in (False, True):
        config = GenerationConfig(abduction={"noise": noise, "residual": residual})
        mechanism = AttributeMechanism(open_ldm(bundles["ldm"], config))
        abducted = mechanism.abduct(data.image, data.attributes)
        image = mechanism.predict(abducted, data.attributes)
        errors.append(float((image - data.image).abs().max()))
        other = mechanism.predict(abducted, {**data.attributes, "sex": 1 - data.attributes["sex"]})
        assert float((other - image).abs().max()) > 1e-5
    assert errors[1] < 1e-5 < errors[0]


def test_the_baseline_is_one_setting_away(bundles):
    assert open_ldm(bundles["cldm"]).perturbation is None
    assert open_ldm(bundles["ldm"]).perturbation is not None
    assert set(bundles["cldm"].manifest["parents"]) == {"vae"}


def test_bundles_that_edit_nothing_say_so(bundles):
    with pytest.raises(ConfigError, match="first stage of mine_ldm"):
        open_conditional_vae(bundles["vae"])
    with pytest.raises(UnscorableError, match="mine_perturbation"):
        open_generator(bundles["perturbation"])
    with pytest.raises(ConfigError, match="mine_vae generator has no settings; leave out start"):
        open_generator(bundles["beta_vae"], settings={"start": 100})
