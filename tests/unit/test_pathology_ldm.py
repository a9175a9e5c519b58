"""The stage, its bundle, and the edits that a generator makes of it."""

import pickle
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.sampling import SamplerConfig
from counterray.models.generator import Edit, EditError, edited_findings
from counterray.models.pathology_ldm.editing import text_editor
from counterray.models.pathology_ldm.encoding import PATHOLOGY, STATES
from counterray.models.pathology_ldm.generator import (
    GenerationConfig,
    NoReferenceError,
    PathologyLDMGenerator,
)
from counterray.models.pathology_ldm.mechanism import PathologyLDMMechanism
from counterray.models.pathology_ldm.prompts import edited_prompts, label_prompts, study_prompts
from counterray.models.pathology_ldm.stages import PathologyLDMConfig, load
from counterray.models.pathology_ldm.text import TransformersText, open_text_encoder
from counterray.models.predictors.image_text import load as load_text
from counterray.training.stage import Stage
from tests.small_gsvae import FINDINGS, INFO, parents_of
from tests.small_pathology_ldm import CONTEXT, encoded, ldm_bundle, make_ldm_stage, parent_bundles


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    return parent_bundles(tmp_path_factory.mktemp("parents"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, parents):
    return ldm_bundle(tmp_path_factory.mktemp("ldm") / "bundle", parents, trained=20)


@pytest.fixture(scope="module")
def batch(parents):
    return encoded(parents)[0]


# The stage.


def test_stage_can_be_sent_before_it_is_built():
    stage: Stage = make_ldm_stage()
    assert pickle.loads(pickle.dumps(stage)).config == stage.config


def test_what_needs_the_frozen_networks_asks_for_build(parents):
    batch, info = encoded(parents)
    module = make_ldm_stage().build(parents, info)
    stage = make_ldm_stage()
    for use in (
        lambda: stage.loss(module, batch, 0),
        lambda: stage.validate(module, [batch]),
        lambda: stage.assembled(module),
        lambda: stage.preview(module, batch),
        lambda: stage.export(module),
    ):
        with pytest.raises(RuntimeError, match="not been built: call build before"):
            use()


def test_the_frozen_networks_are_those_that_the_runner_moves(parents):
    _, info = encoded(parents)
    stage = make_ldm_stage()
    model = stage.assembled(stage.build(parents, info))
    assert stage.frozen["gsvae"] is model.gsvae
    assert stage.frozen["judge"] is model.judge


def test_missing_latents_and_foreign_latents_are_refused(parents):
    _, info = encoded(parents)
    with pytest.raises(ValueError, match=r"no pathology, identity.*jobs encode"):
        make_ldm_stage().build(parents, INFO)
    with pytest.raises(KeyError, match="'gsvae' as input 'gsvae'"):
        make_ldm_stage().build({"text": parents["text"]}, info)
    with pytest.raises(BundleError, match=r"another gsvae than inputs\.gsvae"):
        make_ldm_stage().build(parents, replace(info, parents={**info.parents, "gsvae": "other"}))


def test_a_pathology_channel_that_carries_nothing_is_refused(parents):
    _, info = encoded(parents)
    flat = {**info.tensors, PATHOLOGY: info.tensors[PATHOLOGY].model_copy(update={"std": 0.0})}
    with pytest.raises(ValueError, match="put nothing into it"):
        make_ldm_stage().build(parents, replace(info, tensors=flat))


def test_latents_are_standardised_and_restored(parents):
    batch, info = encoded(parents, 32)
    network = make_ldm_stage().build(parents, info)
    standard = network.standardise(batch.tensors[PATHOLOGY])
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(network.restore(standard), batch.tensors[PATHOLOGY])


def test_training_lowers_the_loss_and_dropout_hides_the_prompt(parents):
    batch, info = encoded(parents, 32)
    stage = make_ldm_stage()
    torch.manual_seed(0)
    module = stage.build(parents, info)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = stage.loss(module, batch, step).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    blind = make_ldm_stage(condition_dropout=0.999999)
    blind.build(parents, info)
    shuffled = replace(batch, tensors={**batch.tensors, STATES: batch.tensors[STATES].flip(0)})
    torch.manual_seed(5)
    one = blind.loss(module, batch, 0).total.detach()
    torch.manual_seed(5)
    other = blind.loss(module, shuffled, 0).total.detach()
    assert float(one) == float(other)


def test_validation_is_repeatable_and_leaves_the_random_state(parents):
    batch, info = encoded(parents, 8)
    stage = make_ldm_stage()
    torch.manual_seed(0)
    module = stage.build(parents, info)
    state = torch.get_rng_state()
    first = stage.validate(module, [batch])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert stage.validate(module, [batch]) == first
    assert {"loss_denoising", "auroc_macro", "reconstruction_auroc_macro"} <= first.keys()
    grids = stage.preview(module, batch)
    assert {name: tuple(grid.shape) for name, grid in grids.items()} == dict.fromkeys(
        ("input", "reconstruction", "drawn"), (8, 1, 32, 32)
    )


def test_a_bundle_draws_the_same_as_what_was_trained(bundle, parents):
    batch, _ = encoded(parents, 4, seed=2)
    model, again = load(bundle), load(bundle)
    condition = model.prompts(batch.prompts)
    seeds = torch.arange(4)
    drawn = [m.draw(condition, noise=m.noise(seeds), seeds=seeds) for m in (model, again)]
    assert torch.equal(*drawn)
    assert bundle.manifest["parents"]["gsvae"]["checksum"] == parents["gsvae"].checksum
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_published_text_models_guide_too_and_another_ones_weights_are_refused(tmp_path, parents):
    transformers = pytest.importorskip("transformers", reason="text models of transformers are an extra")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "severe", "mild", "edema", "cardiomegaly", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    text = TransformersText(kind="transformers", folder=str(tmp_path / "bert"), context=8)
    encoder = open_text_encoder(text, load_text(parents["text"]))
    made = ldm_bundle(tmp_path / "bundle", parents, text=text)
    model = load(made)
    states = model.prompts(["Severe edema."])
    assert states.states.shape == (1, 8, 16)
    torch.testing.assert_close(states.states, encoder.encode(["Severe edema."]).states)
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(BundleError, match=r"'transformers' has other weights"):
        load(made)


# Prompts.


def test_labels_in_words():
    findings = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    known = torch.tensor([[True] * 3, [True] * 3, [False] * 3])
    assert label_prompts(findings, known, FINDINGS) == ["Cardiomegaly. Edema.", "No acute finding.", ""]


def test_an_edit_changes_its_own_finding_and_keeps_what_else_is_said(batch):
    sick = batch.select(torch.tensor([3]))  # severe cardiomegaly, mild bilateral edema
    worse = Edit(do={"finding.edema": 1.0}, severity="severe")
    assert edited_prompts(sick, worse, "refined_report") == ["Severe cardiomegaly. Severe edema."]
    less = Edit(do={"finding.edema": 0.0})
    assert edited_prompts(sick, less, "refined_report") == ["Severe cardiomegaly."]
    healthy = Edit(do={"finding.no_finding": 1.0})
    assert edited_prompts(sick, healthy, "refined_report") == ["No acute finding."]
    assert edited_prompts(sick, less, "labels") == ["Cardiomegaly."]
    assert edited_prompts(sick, Edit(prompt="Any words."), "report") == ["Any words."]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("there is a MODERATE effusion on the left", "Moderate left pleural effusion."),
        ("Mild edema, no pneumothorax.", "Mild edema."),
        ("No pleural effusion.", "No acute finding."),
        ("Normal chest.", "No acute finding."),
    ],
)
def test_words_are_read_as_reports_are(batch, words, read):
    """The model has never read a denial: given the words as they are, it would draw what they deny."""
    for source in ("refined_report", "labels"):
        assert edited_prompts(batch, Edit(prompt=words), source) == [read] * len(batch)


def test_words_that_say_nothing_of_a_finding_are_refused(batch):
    with pytest.raises(EditError, match="nothing of a finding"):
        edited_prompts(batch, Edit(prompt="Any words."), "refined_report")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"do": {"finding.no_finding": 1, "finding.edema": 1}}, "cannot show no finding and another"),
        ({"do": {"finding.no_finding": 0}}, "does not say what to show"),
        ({"do": {"finding.edema": 0}, "severity": "mild"}, "severity goes with a finding that do sets to 1"),
    ],
)
def test_edits_that_contradict_themselves_are_refused(asked, message):
    with pytest.raises(EditError, match=message):
        Edit(**asked)


def test_a_study_without_text_keeps_what_its_labels_say(batch):
    silent = replace(batch.select(torch.tensor([1])), prompts=("",))  # cardiomegaly
    edit = Edit(do={"finding.edema": 1.0}, severity="mild")
    assert edited_prompts(silent, edit, "refined_report") == ["Cardiomegaly. Mild edema."]


def test_labels_change_only_where_the_edit_changes_something(batch):
    unknown = replace(batch, finding_mask=batch.finding_mask & torch.tensor([False, True, True]))
    edited = edited_findings(unknown, Edit(do={"finding.edema": 1.0}))
    has = batch.findings[:, FINDINGS.index("edema")] == 1
    assert bool(edited[has, 0].isnan().all())
    assert bool((edited[~has, 0] == 0).all())


def test_texts_that_were_not_read_are_asked_for(batch):
    with pytest.raises(ValueError, match=r"8 studies carries 0 texts.*with reports"):
        study_prompts(replace(batch, prompts=()), "refined_report")


def test_padding_and_other_texts_change_no_states(bundle):
    model = load(bundle)
    alone = model.prompts(["Mild bilateral edema."])
    beside = model.prompts(["Severe cardiomegaly. Mild bilateral edema.", "Mild bilateral edema."])
    assert alone.states.shape[1] == CONTEXT
    torch.testing.assert_close(alone.states[0], beside.states[1], atol=1e-6, rtol=0)


# Edits.


def generator_of(bundle, batch=None, **settings):
    return PathologyLDMGenerator(bundle, [batch] if batch else (), GenerationConfig(**settings))


def test_edits_are_batch_invariant_and_follow_their_seeds(bundle, batch):
    generator = generator_of(bundle)
    edit, seeds = Edit(prompt="Severe cardiomegaly."), torch.arange(8)
    together = generator.edit(batch, edit, seeds=seeds)
    for row in (0, 5):
        alone = generator.edit(batch.select(torch.tensor([row])), edit, seeds=seeds[[row]])
        assert float((alone[0] - together[row]).abs().max()) < 1e-5
    other = generator.edit(batch, edit, seeds=seeds + 100)
    assert float((other - together).abs().max()) > 1e-3
    assert together.min() >= -1
    assert together.max() <= 1


def test_rows_that_show_what_is_asked_keep_their_pathology(bundle, batch):
    generator = generator_of(bundle)
    edited = generator.edit(batch, Edit(do={"finding.edema": 1.0}), seeds=torch.arange(8))
    kept = generator.model.decode(*generator.model.encode(batch.image))
    has = batch.findings[:, FINDINGS.index("edema")] == 1
    torch.testing.assert_close(edited[has], kept[has], atol=1e-5, rtol=0)
    assert float((edited[~has] - kept[~has]).abs().amax(dim=(1, 2, 3)).min()) > 1e-4
    graver = generator.edit(batch, Edit(do={"finding.edema": 1.0}, severity="severe"), seeds=torch.arange(8))
    assert float((graver[has] - kept[has]).abs().amax(dim=(1, 2, 3)).min()) > 1e-4


def test_several_samples_of_an_image_are_encoded_once_and_equal_their_own_runs(bundle, batch):
    generator = generator_of(bundle)
    twice = batch.select(torch.tensor([1, 1, 2, 1]))
    edit = Edit(prompt="Mild bilateral edema.")
    seeds = torch.tensor([5, 6, 7, 5])
    images = generator.edit(twice, edit, seeds=seeds)
    assert torch.equal(images[0], images[3])
    alone = generator.edit(batch.select(torch.tensor([1])), edit, seeds=torch.tensor([6]))
    assert float((images[1] - alone[0]).abs().max()) < 1e-5


def test_seeds_decide_only_where_noise_is_fresh_or_drawn_to_a_reference(bundle, batch):
    edit, seeds = Edit(prompt="Mild bilateral edema."), torch.arange(8)
    settings = {"sampler": {"scheduler": "ddim"}, "abduction": {"noise": "inverted"}}
    for more, seeded in (
        ({}, False),
        ({"optimise": {"targets": "centroid"}}, False),
        ({"optimise": {}}, True),
    ):
        assert generator_of(bundle, **settings, **more).seeded is seeded
    inverted, fresh = generator_of(bundle, **settings), generator_of(bundle)
    for generator in (inverted, fresh):
        first, second = (generator.edit(batch, edit, seeds=seeds + shift) for shift in (0, 8))
        assert torch.equal(first, second) is not generator.seeded
    assert fresh.seeded


def test_of_an_image_from_text_alone_only_the_anatomy_is_a_patient_s(bundle, batch):
    settings = {"sampler": {"scheduler": "ddim"}, "abduction": {"noise": "inverted", "residual": True}}
    edit, seeds = Edit(prompt="Mild bilateral edema.", anatomy_only=True), torch.arange(8)
    alone = generator_of(bundle, **settings).edit(batch, edit, seeds=seeds)
    fresh = generator_of(
        bundle, sampler={"scheduler": "ddim"}, abduction={"residual": False, "noise": "fresh"}
    )
    assert torch.equal(alone, fresh.edit(batch, Edit(prompt=edit.prompt), seeds=seeds))
    with pytest.raises(EditError, match="need words"):
        Edit(do={"finding.edema": 1}, anatomy_only=True)


def test_steps_that_no_schedule_has_are_refused_when_settings_are_read(bundle):
    for settings in ({"sampler": {"scheduler": "ddim", "steps": 7}}, {"optimise": {"steps": 7}}):
        with pytest.raises(ConfigError, match=r"steps = 7 must divide timesteps"):
            generator_of(bundle, **settings)
    with pytest.raises(ValueError, match=r"steps = 7 must divide timesteps"):
        PathologyLDMConfig(sampler={"scheduler": "ddim", "steps": 7})


def test_a_donor_gives_its_own_pathology_channel(bundle, batch):
    generator = generator_of(bundle)
    donor = batch.select(torch.arange(8).flip(0))
    edited = generator.edit(batch, Edit(), seeds=torch.arange(8), donor=donor)
    identity, _ = generator.model.encode(batch.image)
    _, pathology = generator.model.encode(donor.image)
    assert torch.equal(edited, generator.model.decode(identity, pathology))


def test_impossible_edits_are_refused(bundle, batch):
    generator = generator_of(bundle)
    with pytest.raises(EditError, match=r"no such finding.*cardiomegaly"):
        generator.edit(batch, Edit(do={"finding.fracture": 1.0}), seeds=torch.arange(8))
    with pytest.raises(EditError, match="An empty edit"):
        generator.edit(batch, Edit(), seeds=torch.arange(8))


def test_optimised_noise_comes_nearer_to_the_references(bundle, parents):
    training, _ = encoded(parents, 16, seed=4)
    batch, _ = encoded(parents, 4, seed=5)
    optimise = {"iterations": 15, "steps": 2, "targets": "centroid"}
    plain, tuned = generator_of(bundle), generator_of(bundle, training, optimise=optimise)
    edit = Edit(prompt="Severe cardiomegaly.")
    features = [g.model.features(g.edit(batch, edit, seeds=torch.arange(4))).detach() for g in (plain, tuned)]
    shown = training.findings[:, FINDINGS.index("cardiomegaly")] == 1
    centre = plain.model.features(training.image[shown])[:10].mean(0)
    before, after = ((part - centre).norm(dim=1).mean() for part in features)
    assert float(after) < float(before)
    assert not any(parameter.grad is not None for parameter in tuned.model.parameters())


def test_optimising_needs_references(bundle, parents, batch):
    few, _ = encoded(parents, 1)
    generator = generator_of(bundle, few, optimise={"iterations": 1})
    with pytest.raises(NoReferenceError, match=r"0 training images show cardiomegaly"):
        generator.edit(batch, Edit(prompt="Cardiomegaly."), seeds=torch.arange(8))
    with pytest.raises(EditError, match="needs a finding"):
        generator.edit(batch, Edit(prompt="A normal chest."), seeds=torch.arange(8))


def test_the_text_editor_keeps_the_own_pathology_under_the_null_intervention(bundle, batch):
    model = load(bundle)
    edit = text_editor(model, source="refined_report")
    same = edit(batch.image, batch, batch)
    assert torch.equal(same, model.decode(*model.encode(batch.image)))
    donor = batch.select(torch.arange(8).flip(0))
    changed = edit(batch.image, batch, donor)
    assert float((changed - same).abs().max()) > 1e-3
    assert torch.equal(changed, edit(batch.image, batch, donor))


@pytest.fixture
def keeping(bundle):
    """A model whose counterfactuals keep all of an image that no prompt speaks of."""
    model = load(bundle)
    model.sampler = SamplerConfig(steps=50, guidance_scale=1.0)
    model.abduction = AbductionConfig(noise="inverted", iterations=3, residual=True)
    return model


def test_with_its_residual_a_null_edit_gives_back_the_very_image(keeping, batch):
    edit = text_editor(keeping, source="refined_report")
    torch.testing.assert_close(edit(batch.image, batch, batch), batch.image, atol=1e-6, rtol=0)


def test_inverted_noise_keeps_a_patient_whose_prompt_is_asked_for_again(keeping, batch):
    twin = replace(batch)
    edit = text_editor(keeping, source="refined_report")
    kept = (edit(batch.image, batch, twin) - batch.image).abs().mean()
    keeping.abduction = AbductionConfig(residual=True)
    fresh = (edit(batch.image, batch, twin) - batch.image).abs().mean()
    assert float(kept) < 0.2 * float(fresh)


def test_a_residual_is_what_decoding_leaves_out(keeping, batch):
    patients = keeping.abduct(batch.image)
    decoded = keeping.decode(patients.identity, patients.pathology)
    torch.testing.assert_close(patients.residual, batch.image - decoded, atol=0, rtol=0)
    rows = torch.tensor([3, 1])
    part = keeping.render(patients.select(rows), patients.pathology[rows])
    torch.testing.assert_close(part, batch.image[rows], atol=1e-6, rtol=0)


def test_inversion_is_refused_where_the_sampler_has_none(bundle):
    settings = {"sampler": {"scheduler": "dpm_solver"}, "abduction": {"noise": "inverted"}}
    with pytest.raises(
        ConfigError, match=r"abduction.noise = inverted .* dpm_solver .*set sampler.scheduler"
    ):
        generator_of(bundle, **settings)
    with pytest.raises(ValidationError, match=r"not ddim with eta 0\.5"):
        PathologyLDMConfig.model_validate({"sampler": {"eta": 0.5}, "abduction": {"noise": "inverted"}})


# The mechanism.


@pytest.mark.parametrize("abduction", ["fresh", "inverted"])
def test_unchanged_findings_reconstruct_and_changed_ones_do_not(bundle, batch, abduction):
    model = load(bundle)
    model.abduction = AbductionConfig(noise=abduction)
    mechanism = PathologyLDMMechanism(model, finding_names=FINDINGS)
    parents = parents_of(batch)
    noise = mechanism.abduct(batch.image, parents)
    reconstruction = mechanism.predict(noise, parents)
    assert torch.equal(reconstruction, model.decode(*model.encode(batch.image)))
    changed = {**parents, "finding.edema": 1 - parents["finding.edema"]}
    assert float((mechanism.predict(noise, changed) - reconstruction).abs().max()) > 1e-3


def test_setting_a_finding_that_is_not_known_draws_it(bundle, batch):
    mechanism = PathologyLDMMechanism(load(bundle), finding_names=FINDINGS)
    parents = parents_of(batch)
    unknown = {**parents, "finding.edema": torch.full((8,), torch.nan)}
    noise = mechanism.abduct(batch.image, unknown)
    asked = mechanism.predict(noise, {**unknown, "finding.edema": torch.ones(8)})
    assert float((asked - mechanism.predict(noise, unknown)).abs().amax(dim=(1, 2, 3)).min()) > 1e-4
    said = mechanism.with_prompts(noise, ["Severe edema."] * 8)
    assert torch.equal(mechanism.predict(said, parents), mechanism.predict(said, unknown))


def test_inversion_gives_back_the_observed_pathology_from_the_own_prompt(bundle, batch):
    model = load(bundle)
    _, pathology = model.encode(batch.image)
    condition = model.prompts(batch.prompts)
    model.sampler = model.sampler.model_copy(update={"steps": 50, "guidance_scale": 1.0})
    model.abduction = AbductionConfig(iterations=3)
    noise = model.invert(condition, pathology)
    again = model.draw(condition, noise=noise)
    error = float((again - pathology).abs().mean() / pathology.std())
    assert error < 0.05


def test_loss_and_samples_have_a_row_each(bundle, batch):
    mechanism = PathologyLDMMechanism(load(bundle), finding_names=FINDINGS)
    parents = parents_of(batch)
    loss = mechanism.loss(batch.image, parents)
    assert loss.shape == (8,)
    assert bool((loss > 0).all())
    images = [mechanism.sample(parents, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert images[0].shape == (8, 1, 32, 32)
    assert torch.equal(*images)
    with pytest.raises(ValueError, match="at least one parent"):
        mechanism.sample({}, torch.Generator())
