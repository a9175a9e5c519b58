"""What a generate makes and in which chunks, seeds, refusals and files: all that needs no Ray."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from counterray.config import ConfigError, validate
from counterray.data.chunks import write_shard
from counterray.data.dataset import Dataset, DatasetManifest, Shard
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.study import ARROW_SCHEMA, Batch
from counterray.data.synthetic_png import encode_png, to_grey
from counterray.data.training_batches import TrainingBatches
from counterray.models.generator import Edit, EditError, NoMatchError, image_seed
from counterray.storage import resolve
from jobs.generate import interventions
from jobs.generation.chunks import describe, seeds_of
from jobs.generation.editing import edit_rows
from jobs.generation.job import remove_leftovers
from jobs.generation.request import GenerateConfig, GenerationError, Request, check_folder, claim
from jobs.generation.selection import list_studies, plan, read_batch, rotation
from tests.small_gsvae import make_batch

STUDIES = 40
DO = {"do": {"finding.edema": 1.0}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 phantom studies in two shards of the test split."""
    location = resolve(tmp_path_factory.mktemp("generation") / "data")
    studies = [study.row() for study in draw_rows(PhantomConfig(studies=STUDIES, image_size=32), 0, STUDIES)]
    shards: list[Shard] = []
    for number, part in enumerate((studies[:25], studies[25:])):
        table = pa.Table.from_pylist([{**row, "split": "test"} for row in part], ARROW_SCHEMA)
        shards.append(write_shard(location, "test", f"{number:05d}", table))
    manifest = DatasetManifest(
        study_schema=1,
        source="phantom",
        config={},
        code_version="1",
        image_size=32,
        finding_names=("no_finding", "edema"),
        vocabulary={"sex": ("female", "male")},
        counts={},
        quarantined={},
        shards={"test": tuple(shards)},
        fingerprint="f",
    )
    return Dataset(location, manifest)


def config(**settings) -> GenerateConfig:
    return validate(GenerateConfig, {**DO, **settings})


def identities(chunks) -> list[tuple[str, int]]:
    items = pa.concat_tables([chunk.items for chunk in chunks])
    return list(zip(items["image_id"].to_pylist(), items["sample"].to_pylist(), strict=True))


def test_every_study_and_sample_is_planned_once_whatever_the_chunks(dataset):
    ids = list_studies(dataset, "test")["image_id"].to_pylist()
    assert len(set(ids)) == STUDIES
    expected = [(image_id, sample) for image_id in ids for sample in range(3)]
    for size in (1, 7, 64, 1000):
        chunks = plan(dataset, config(samples=3, chunk_images=size))
        assert identities(chunks) == expected
        sizes = [len(chunk.items) for chunk in chunks]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        numbers = pa.concat_tables([chunk.items for chunk in chunks])["number"].to_pylist()
        assert numbers == list(range(3 * STUDIES))


def test_a_limit_and_named_images_choose_studies(dataset):
    ids = list_studies(dataset, "test")["image_id"].to_pylist()
    assert identities(plan(dataset, config(studies=27))) == [(image_id, 0) for image_id in ids[:27]]
    named = identities(plan(dataset, config(image_ids=[ids[30], ids[2]])))
    assert named == [(ids[2], 0), (ids[30], 0)]
    with pytest.raises(GenerationError, match="1 of the 2 images of --image-id are not in split 'test'") as e:
        plan(dataset, config(image_ids=[ids[0], "patient-name"]))
    assert "patient-name" not in str(e.value)


def test_text_alone_draws_every_anatomy_once_before_one_twice(dataset):
    settings = {"do": {}, "prompt": "edema", "drawn": STUDIES + 5}
    drawn = identities(plan(dataset, config(**settings)))
    assert len(set(drawn)) == len(drawn) == STUDIES + 5
    assert len({image_id for image_id, _ in drawn}) == STUDIES
    some = {**settings, "drawn": 10}
    first, other = (identities(plan(dataset, config(**some, seed=seed))) for seed in (0, 1))
    assert len(first) == len(other) == 10
    assert first != other
    assert first == identities(plan(dataset, config(**some)))


def test_rows_are_read_in_the_order_asked_for(dataset):
    items = plan(dataset, config(samples=2, chunk_images=100))[0].items
    mixed = items.take(pa.array([30, 3, 3, 77, 0]))
    batch = read_batch(dataset, mixed)
    assert list(batch.image_ids) == mixed["image_id"].to_pylist()
    for row in range(5):
        alone = read_batch(dataset, mixed.slice(row, 1))
        assert torch.equal(alone.image[0], batch.image[row])
        assert torch.equal(alone.findings[0], batch.findings[row])


def test_training_batches_can_be_read_again_and_end_at_their_limit(dataset):
    manifest = dataset.manifest.model_copy(update={"shards": {"train": dataset.manifest.shards["test"]}})
    batches = TrainingBatches(replace(dataset, manifest=manifest), studies=30)
    for _ in range(2):
        assert [len(batch) for batch in batches] == [30]
    assert next(iter(batches)).reports[0]


def test_shuffled_donors_are_other_patients(dataset):
    chunks = plan(dataset, config(do={}, donor="shuffled", samples=2, chunk_images=16))
    for chunk in chunks:
        assert chunk.donors is not None
        assert len(chunk.donors) == len(chunk.items)
        pairs = zip(
            chunk.items["patient_id"].to_pylist(), chunk.donors["patient_id"].to_pylist(), strict=True
        )
        assert all(patient != donor for patient, donor in pairs)
    assert rotation(["a", "a", "b", "c"], seed=0) == [3, 2, 1, 2], "two on, past the own patient"
    assert len({tuple(rotation(["a", "b", "c", "d"], seed)) for seed in range(20)}) == 3
    with pytest.raises(GenerationError, match="two patients; the request has 3 of 1"):
        rotation(["a", "a", "a"], seed=0)


def test_a_named_donor_serves_every_study(dataset):
    donor = list_studies(dataset, "test")["image_id"][33].as_py()
    chunks = plan(dataset, config(do={}, donor=donor, chunk_images=16))
    assert {name for chunk in chunks for name in chunk.donors["image_id"].to_pylist()} == {donor}
    with pytest.raises(GenerationError, match="donor of --from is no image") as error:
        plan(dataset, config(do={}, donor="patient-name"))
    assert "patient-name" not in str(error.value)


def test_seeds_depend_on_seed_study_and_sample_alone(dataset):
    items = plan(dataset, config(samples=2))[0].items
    seeds = seeds_of(items, 5)
    assert seeds.dtype == torch.int64
    assert len(set(seeds.tolist())) == len(items)
    assert (seeds >= 0).all()
    assert torch.equal(seeds_of(items.slice(10, 4), 5), seeds[10:14])
    assert image_seed(5, "a", 0) != image_seed(6, "a", 0)
    assert image_seed(0, "a", 0) == 5377369291220743188, "images of earlier versions could not be repeated"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do": {}}, "given: none"),
        ({"prompt": "edema"}, "given: do, prompt"),
        ({"donor": "shuffled"}, r"given: do, donor \(--from\)"),
        ({"drawn": 4}, "text alone need a prompt"),
        ({"studies": 3, "image_ids": ["a"]}, "leave one out"),
    ],
)
def test_contradictory_requests_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings).edit()


def test_an_edit_says_what_was_asked():
    asked = config(severity="mild")
    assert asked.edit() == Edit(do={"finding.edema": 1.0}, severity="mild")
    assert describe(asked.edit(), asked) == '{"do": {"finding.edema": 1.0}, "severity": "mild"}'
    swap = config(do={}, donor="shuffled")
    assert describe(swap.edit(), swap) == '{"donor": "shuffled"}'


def test_interventions_are_assignments():
    assert interventions(["finding.edema=1", "finding.fracture=0"]) == {
        "finding.edema": 1.0,
        "finding.fracture": 0.0,
    }
    assert interventions(["sex=male", "group=2"]) == {"sex": "male", "group": 2.0}
    for wrong in (
        ["finding.edema"],
        ["sex="],
        ["=1"],
        ["finding.edema=yes"],
        ["finding.edema=1", "finding.edema=0"],
    ):
        with pytest.raises(ConfigError, match=r"finding\.<name>=<number>"):
            interventions(wrong)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0.5"])
def test_a_level_that_is_no_code_is_refused_as_it_was_written(value):
    """``float`` reads nan and inf as numbers, which are no levels."""
    asked = config(do=interventions([f"sex={value}"]))
    with pytest.raises(EditError, match=rf"do sex={value}: attributes can be set to a level"):
        asked.edit()


class Brightener:
    """A generator whose edit is easy to predict; patients whose image is dark in a corner it cannot edit."""

    image_size = 32
    finding_names = ("edema",)
    levels: ClassVar = {}
    ranges: ClassVar = {}
    seeded = True

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def edit(self, batch: Batch, edit: Edit, *, seeds: torch.Tensor, donor: Batch | None = None):
        if edit.prompt:
            raise EditError("no words")
        self.sizes.append(len(batch))
        if (batch.attributes["age"] < 0).any():
            raise NoMatchError("no such anatomy")
        shift = seeds.double()[:, None, None, None] / 100
        return (batch.image + shift + (0 if donor is None else donor.image)).float()


def batch_with(*bad: int) -> Batch:
    batch = make_batch(8)
    age = batch.attributes["age"].clone()
    age[list(bad)] = -1
    return replace(batch, attributes={**batch.attributes, "age": age})


@pytest.mark.parametrize("bad", [(), (3,), (0, 1, 7), tuple(range(8))])
def test_rows_that_cannot_be_edited_are_set_aside_and_the_rest_goes_on(bad):
    batch, seeds = batch_with(*bad), torch.arange(8)
    made = edit_rows(Brightener(), batch, Edit(), seeds=seeds, donor=batch, batch_size=5)
    assert list(made.refusals) == list(bad)
    assert {refusal.reason for refusal in made.refusals.values()} <= {"no_match"}
    good = [row for row in range(8) if row not in bad]
    expected = batch.image * 2 + seeds[:, None, None, None] / 100
    assert torch.allclose(made.image[good], expected[good], atol=1e-6)
    assert made.image[list(bad)].isnan().all()


def test_pieces_are_of_nearly_equal_size():
    generator = Brightener()
    edit_rows(generator, batch_with(), Edit(), seeds=torch.arange(8), batch_size=5)
    assert generator.sizes == [4, 4]


def test_an_image_that_is_not_finite_is_set_aside():
    batch = batch_with()
    image = batch.image.clone()
    image[2, 0, 0, 0] = torch.nan
    made = edit_rows(
        Brightener(), replace(batch, image=image), Edit(), seeds=torch.zeros(8).long(), batch_size=8
    )
    assert {row: refusal.reason for row, refusal in made.refusals.items()} == {2: "not_finite"}


def test_an_image_that_shows_already_what_is_asked_is_not_passed_on_as_synthetic():
    batch = batch_with()
    shown = batch.findings[:, batch.finding_names.index("edema")] == 1
    assert 0 < int(shown.sum()) < len(batch)
    made = edit_rows(
        Brightener(), batch, Edit(do={"finding.edema": 1.0}), seeds=torch.zeros(8).long(), batch_size=8
    )
    assert [row in made.refusals for row in range(8)] == shown.tolist()
    assert {refusal.reason for refusal in made.refusals.values()} == {"unchanged"}


def test_an_edit_that_is_impossible_for_all_ends_the_job():
    with pytest.raises(EditError, match="no words"):
        edit_rows(Brightener(), batch_with(), Edit(prompt="edema"), seeds=torch.zeros(8).long(), batch_size=8)


def test_grey_values_and_png():
    image = torch.tensor([[[-1.0, 1.0], [0.0, 3.0]]])
    assert to_grey(image, 8).tolist() == [[0, 255], [128, 255]]
    assert to_grey(image, 12).tolist() == [[0, 4095], [2048, 4095]]
    data = encode_png(to_grey(image, 8), source="bundle " + "c" * 64)
    assert data == encode_png(to_grey(image, 8), source="bundle " + "c" * 64)
    with Image.open(io.BytesIO(data)) as picture:
        assert np.asarray(picture).tolist() == [[0, 255], [128, 255]]
        assert picture.text["Description"].startswith("synthetic counterfactual")
        assert picture.text["Source"] == f"bundle {'c' * 64}"


def request(**settings) -> Request:
    return Request("generate", {"software": "1", "config": config(**settings).model_dump(mode="json")})


def test_a_folder_belongs_to_one_request(tmp_path):
    target = resolve(tmp_path / "out")
    check_folder(target, request())
    claim(target, request())
    check_folder(target, request())
    with pytest.raises(GenerationError, match=r"another request made: config\.seed was 0 and is 1\."):
        check_folder(target, request(seed=1))
    with pytest.raises(GenerationError, match=r"config\.do\.finding\.fracture was None and is 1\.0"):
        check_folder(target, request(do={"finding.edema": 1, "finding.fracture": 1}))
    with pytest.raises(GenerationError, match=r"config\.image_ids differs\.") as error:
        check_folder(target, request(image_ids=["patient-name"]))
    assert "patient-name" not in str(error.value)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GenerationError, match="is a file"):
        check_folder(resolve(tmp_path / "file"), request())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(GenerationError, match="holds files, but none of a python -m jobs generate"):
        check_folder(resolve(tmp_path / "out"), request())


def test_of_two_that_came_at_once_one_gets_the_folder(tmp_path):
    target = resolve(tmp_path / "out")
    for each in (request(), request(seed=1)):
        check_folder(target, each)
    (target / "run.lock").write_json({})
    claim(target, request())
    with pytest.raises(GenerationError, match=r"config\.seed was 0 and is 1"):
        claim(target, request(seed=1))


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    for name in ("00000", f".00001.{'0' * 32}.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0000000.png").write_bytes(b"")
    remove_leftovers(resolve(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["00000"]
    remove_leftovers(resolve(tmp_path / "absent"))
