"""The phantom's causal model as a generator."""

from dataclasses import replace

import pytest
import torch

from counterray.data.batching import read_batches
from counterray.evaluation.exact_generator import ExactGenerator
from counterray.evaluation.metric import UnscorableError
from counterray.models.generator import Edit, EditError
from tests.phantom_dataset import write_dataset

COUNT = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("exact") / "data", test=COUNT)


@pytest.fixture(scope="module")
def batch(dataset):
    [batch] = read_batches(dataset, "test", batch_size=COUNT)
    return batch


def edit(generator, batch, **do):
    return generator.edit(batch, Edit(do=do), seeds=torch.zeros(len(batch), dtype=torch.long))


@pytest.mark.parametrize("effect", ["direct", "total"])
def test_the_own_level_gives_the_own_image_and_another_level_another(dataset, batch, effect):
    generator = ExactGenerator(dataset.manifest, effect=effect)
    for attribute in ("sex", "group", "scanner"):
        levels = generator.levels[attribute]
        made = torch.stack([edit(generator, batch, **{attribute: level}) for level in levels])
        own = batch.attributes[attribute].long()
        torch.testing.assert_close(made[own, torch.arange(COUNT)], batch.image)
        other = (own + 1) % len(levels)
        changed = (made[other, torch.arange(COUNT)] != batch.image).flatten(1).any(dim=1)
        assert changed.all()


@pytest.mark.parametrize("effect", ["direct", "total"])
def test_the_own_age_gives_the_own_image_and_another_age_another(dataset, batch, effect):
    generator = ExactGenerator(dataset.manifest, effect=effect)
    for row, age in enumerate(batch.attributes["age"].tolist()):
        one = batch.select(torch.tensor([row]))
        torch.testing.assert_close(edit(generator, one, age=age), one.image)
        older = edit(generator, one, age=min(age + 30, 100.0))
        assert (older != one.image).any()


def test_going_there_and_back_is_the_same_image(dataset, batch):
    """Composition of two interventions on the scanner, which has no descendant but the image."""
    generator = ExactGenerator(dataset.manifest)
    there = edit(generator, batch, scanner="mobile")
    mobile = torch.full((COUNT,), float(generator.levels["scanner"].index("mobile")))
    moved = replace(batch, image=there, attributes={**batch.attributes, "scanner": mobile})
    for row, level in enumerate(batch.attributes["scanner"].long().tolist()):
        one = torch.tensor([row])
        back = edit(generator, moved.select(one), scanner=generator.levels["scanner"][level])
        torch.testing.assert_close(back, batch.image[one])


def test_a_direct_effect_of_the_group_leaves_the_findings_alone(dataset, batch):
    """A total one moves severities, so its images differ from the direct one's in some patients."""
    direct, total = (
        edit(ExactGenerator(dataset.manifest, effect=effect), batch, group="b")
        for effect in ("direct", "total")
    )
    assert (direct != total).any()


def test_what_it_cannot_do(dataset, batch):
    generator = ExactGenerator(dataset.manifest)
    with pytest.raises(EditError, match="no such level"):
        edit(generator, batch, sex="other")
    with pytest.raises(EditError, match=r"do age=130\.0: age can be set to 0 to 100"):
        edit(generator, batch, age=130.0)
    with pytest.raises(EditError, match="do age=old: age can be set to a number"):
        edit(generator, batch, age="old")
    with pytest.raises(EditError, match=r"do view: no such attribute.*sex, group, site, scanner, age"):
        edit(generator, batch, view="PA")
    with pytest.raises(EditError, match="sets attributes"):
        generator.edit(batch, Edit(prompt="edema"), seeds=torch.zeros(COUNT))
    with pytest.raises(UnscorableError, match="source 'nih_cxr14'"):
        ExactGenerator(dataset.manifest.model_copy(update={"source": "nih_cxr14"}))
