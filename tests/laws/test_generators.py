"""Laws of every generator: an edit is a prediction from what was abducted, whatever is beside it."""

import pickle
from dataclasses import replace

import pytest
import torch

from counterray.data.batching import read_batches
from counterray.data.study import Batch
from counterray.evaluation.exact_generator import ExactGenerator
from counterray.evaluation.opening import open_generator
from counterray.models.generator import Abduction, Edit, EditError
from tests.phantom_dataset import write_dataset
from tests.predictor_toys import batch as attribute_batch
from tests.small_gsvae import make_batch
from tests.small_mine_ldm import chain, conditional_bundle
from tests.small_pathology_ldm import encoded, ldm_bundle, parent_bundles

COUNT = 6
SEEDS = torch.arange(20, 20 + COUNT)
KEPT = {"abduction": {"noise": "inverted", "residual": True}, "sampler": {"scheduler": "ddim"}}
WORDS = (Edit(prompt="Mild bilateral edema."), Edit(do={"finding.cardiomegaly": 1.0}, severity="severe"))
ALONE = Edit(prompt="Severe cardiomegaly.", anatomy_only=True)
SEX = (Edit(do={"sex": 1}), Edit(do={"sex": 0}))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Name to a generator, a batch of its images, and edits that it can make."""
    folder = tmp_path_factory.mktemp("generators")
    parents = parent_bundles(folder / "parents")
    patients, _ = encoded(parents, COUNT)
    words = ldm_bundle(folder / "pathology_ldm", parents, trained=5)
    attributes, people = chain(folder / "mine_ldm")["ldm"], attribute_batch(COUNT, 5)
    dataset = write_dataset(folder / "phantom", test=COUNT)
    [phantom] = read_batches(dataset, "test", batch_size=COUNT)
    findings = (Edit(do={"finding.edema": 1.0}), Edit(do={"finding.cardiomegaly": 0.0}))
    ddim = {"abduction": KEPT["abduction"]}
    return {
        "gsvae": (open_generator(parents["gsvae"], [make_batch(8, 1)]), patients, findings),
        "pathology_ldm": (open_generator(words), patients, (*WORDS, ALONE)),
        "pathology_ldm inverted": (open_generator(words, settings=KEPT), patients, (*WORDS, ALONE)),
        "mine_ldm": (open_generator(attributes), people, SEX),
        "mine_ldm inverted": (open_generator(attributes, settings=ddim), people, SEX),
        "mine_vae": (open_generator(conditional_bundle(folder / "vae")), people, SEX),
        "exact": (ExactGenerator(dataset.manifest), phantom, (Edit(do={"scanner": 1}), Edit(do={"sex": 0}))),
    }


NAMES = (
    *("gsvae", "pathology_ldm", "pathology_ldm inverted"),
    *("mine_ldm", "mine_ldm inverted", "mine_vae", "exact"),
)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_the_prediction_from_what_was_abducted(name, worlds):
    """Abducted once, for whatever edit; each edit then is one prediction, the same to the bit."""
    generator, batch, edits = worlds[name]
    abduction = generator.abduct(batch)
    for edit in edits:
        made = generator.edit(batch, edit, seeds=SEEDS)
        assert torch.equal(generator.predict(abduction, [edit] * COUNT, seeds=SEEDS), made)
        assert made.shape == batch.image.shape
    first, second = (generator.edit(batch, edit, seeds=SEEDS) for edit in edits[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_are_what_they_are_alone(name, worlds):
    """Each row with an edit and a seed of its own; parts abducted apart and joined."""
    generator, batch, edits = worlds[name]
    asked = [edits[row % len(edits)] for row in range(COUNT)]
    halves = [generator.abduct(batch.select(rows)) for rows in torch.arange(COUNT).chunk(2)]
    together = generator.predict(Abduction.join(halves), asked, seeds=SEEDS)
    for row in range(COUNT):
        only = torch.tensor([row])
        alone = generator.edit(batch.select(only), asked[row], seeds=SEEDS[only])
        torch.testing.assert_close(together[only], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_abducted_travels_without_the_pixels(name, worlds):
    generator, batch, edits = worlds[name]
    abduction = generator.abduct(batch)
    sent = pickle.loads(pickle.dumps(abduction.to("cpu")))
    assert len(sent) == COUNT
    assert sent.patients.image.numel() == 0
    assert sent.nbytes == sum(value.nbytes for value in abduction.tensors.values()) > 0
    rows = torch.tensor([3, 3, 0])
    made = generator.predict(sent.select(rows), [edits[0]] * 3, seeds=SEEDS[rows])
    whole = generator.edit(batch, edits[0], seeds=SEEDS)
    torch.testing.assert_close(made, whole[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pathology_ldm", "pathology_ldm inverted", "mine_ldm"])
def test_steps_are_told_and_end_in_the_image(name, worlds):
    generator, batch, edits = worlds[name]
    told = []

    def on_step(number, count, image):
        told.append((number, count, image()))

    # What every row is drawn anew by, so that each preview is of all rows.
    made = generator.predict(generator.abduct(batch), [edits[0]] * COUNT, seeds=SEEDS, on_step=on_step)
    numbers = [number for number, _, _ in told]
    assert numbers == list(range(1, told[0][1] + 1))
    # The last step of a deterministic sampler goes to the very z_0 that it predicts.
    torch.testing.assert_close(told[-1][2], made, atol=1e-4, rtol=0)
    assert not torch.allclose(told[0][2], made, atol=1e-3)


def test_what_a_step_raises_ends_the_sampling(worlds):
    generator, batch, edits = worlds["pathology_ldm"]

    def give_up(number, count, image):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        generator.predict(generator.abduct(batch), [edits[0]] * COUNT, seeds=SEEDS, on_step=give_up)


def test_another_sampler_is_another_generator_of_the_same_weights(worlds):
    generator, batch, edits = worlds["pathology_ldm"]
    before = generator.edit(batch, edits[0], seeds=SEEDS)
    other = generator.sampling(steps=2, guidance=1.0)
    assert not torch.equal(other.edit(batch, edits[0], seeds=SEEDS), before)
    assert torch.equal(generator.edit(batch, edits[0], seeds=SEEDS), before)
    assert next(other.model.parameters()) is next(generator.model.parameters())
    with pytest.raises(EditError, match="steps"):
        generator.sampling(steps=5000, guidance=None)
    with pytest.raises(EditError, match="does not sample"):
        worlds["gsvae"][0].sampling(steps=4, guidance=None)


def test_joined_batches_have_all_rows():
    batch = make_batch(6, 0)
    parts = [batch.select(rows) for rows in torch.arange(6).chunk(3)]
    joined = Batch.join(parts)
    assert torch.equal(joined.image, batch.image)
    assert joined.reports == batch.reports
    assert torch.equal(joined.attributes["age"], batch.attributes["age"])
    assert Batch.join([parts[0], replace(parts[1], reports=())]).reports == ()
