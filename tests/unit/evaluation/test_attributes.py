"""Readings of attributes by hand, and the exact counterfactual of one."""

import math

import pytest
import torch

from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import make_batch
from counterray.evaluation.attributes import attribute_metrics, read_as
from counterray.evaluation.generator import make_counterfactuals, shuffled_donors, with_attributes
from counterray.evaluation.metric import Judge, UnscorableError
from counterray.evaluation.opening import require_levels

BATCH = make_batch(24, 32, seed=4)


def judge_of(levels):
    """It reads a level off the brightness of the first pixel: -1 is the first one, 1 the last."""

    def predict(image):
        level = (image[:, 0, 0, 0] + 1) / 2 * (levels - 1)
        return torch.nn.functional.one_hot(level.round().long(), levels)

    return Judge(name="demographic", checksum="0" * 8, predict=predict)


def marked(image, codes, levels):
    out = image.clone()
    out[:, 0, 0, 0] = codes.float() / (levels - 1) * 2 - 1
    return out


def test_a_reading_of_what_is_not_known_counts_for_nothing():
    scores = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    found = read_as(scores, torch.tensor([1.0, 1.0, math.nan]))
    assert found[:2].tolist() == [1.0, 0.0]
    assert found[2].isnan()


def test_only_images_that_were_given_another_level_count():
    """The editor sets sex for all but the first of those that change; the scanner's mark it destroys."""
    source = BATCH
    source.image[:] = marked(source.image, source.attributes["sex"], 2)
    donor = with_attributes(source, shuffled_donors(source), ("sex",))
    changes = (donor.attributes["sex"] != source.attributes["sex"]).nonzero()[:, 0]
    stuck = int(changes[0])

    def edit(image, patient, target):
        codes = target.attributes["sex"].clone()
        if target is not patient and len(codes) == len(source):
            codes[stuck] = patient.attributes["sex"][stuck]
        return marked(image, codes, 2)

    made = make_counterfactuals(edit, source, donor, attributes=("sex",))
    judges = {"sex": judge_of(2), "scanner": judge_of(4)}
    found = {metric.key: metric for metric in attribute_metrics(made, judges)}
    effect = found["attribute_effectiveness[sex]"]
    assert effect.n == len(changes)
    assert effect.value == pytest.approx((len(changes) - 1) / len(changes))
    assert found["attribute_real[sex]"].value == found["attribute_null[sex]"].value == 1
    assert found["attribute_off_target[scanner]"].value == pytest.approx((len(changes) - 1) / len(source))
    assert made.asked.attributes["sex"].equal(donor.attributes["sex"])
    assert made.asked.attributes["scanner"].equal(source.attributes["scanner"])


def test_data_with_other_levels_are_refused():
    levels = {"sex": ("female", "male")}
    require_levels(levels, VOCABULARY)
    with pytest.raises(UnscorableError, match="female, male of sex; the data have male, female"):
        require_levels(levels, {"sex": ("male", "female")})
    with pytest.raises(UnscorableError, match="the data have none"):
        require_levels(levels, {})
