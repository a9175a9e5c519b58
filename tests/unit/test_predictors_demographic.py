"""The demographic classifier."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterray.models.predictors.demographic import (
    Demographic,
    DemographicConfig,
    DemographicStage,
    attribute_metrics,
    masked_cross_entropy,
)
from counterray.training.loop import train
from tests.predictor_toys import DATA, batch, batches, with_unknown

NAN = float("nan")


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [50.0, 0.0]])
    # −log ¾ and −log ¼; the third image's class is unknown.
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert float(masked_cross_entropy(logits, torch.tensor([0.0, 0.0, NAN]))) == pytest.approx(expected)
    assert float(masked_cross_entropy(logits, torch.full((3,), NAN))) == 0


def test_metrics_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 9.0]])
    metrics = attribute_metrics(logits, torch.tensor([0.0, 1.0, 1.0, NAN]))
    # Two of three are right, and of the two pairs both are ordered rightly.
    assert metrics == {"accuracy": pytest.approx(2 / 3), "classes": 2.0, "auroc": 1.0}
    assert attribute_metrics(logits, torch.full((4,), NAN)) == {}
    assert "auroc" not in attribute_metrics(logits, torch.tensor([1.0, 1.0, 1.0, NAN]))


def test_three_classes_are_averaged_one_against_the_rest():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0], [3.0, 0.0, 1.0]])
    metrics = attribute_metrics(logits, torch.tensor([0.0, 1.0, 2.0, 2.0]))
    # Class 0: 3 of 3 pairs; class 1: 3 of 3; class 2: image 3's share of it still beats both others'.
    assert metrics["auroc"] == 1.0
    assert metrics["accuracy"] == 0.75
    assert metrics["classes"] == 3.0


def test_one_head_for_each_attribute():
    module = Demographic(DemographicConfig(attributes=("sex", "scanner")), DATA.vocabulary, 32)
    image = batch(2, 0).image
    assert {name: tuple(value.shape) for name, value in module(image).items()} == {
        "sex": (2, 2),
        "scanner": (2, 3),
    }
    assert {value.dtype for value in module.bfloat16()(image).values()} == {torch.float32}


def test_learns_sex_and_scanner_where_some_are_unknown():
    stage = DemographicStage(DemographicConfig(attributes=("sex", "scanner")))
    training = [
        replace(toy, attributes=with_unknown(toy.attributes, "sex", range(8))) for toy in batches(6, 32)
    ]
    module = train(stage, data=DATA, batches=lambda: training, steps=60, learning_rate=3e-3)
    metrics = stage.validate(module, [batch(96, 50)])
    assert metrics["auroc.sex"] > 0.95
    assert metrics["auroc.scanner"] > 0.9
    assert metrics["auroc_mean"] == pytest.approx((metrics["auroc.sex"] + metrics["auroc.scanner"]) / 2)


def test_attributes_are_checked():
    with pytest.raises(
        ValueError, match=r"Setting attributes asks for site.*two values or more: sex, scanner"
    ):
        DemographicStage(DemographicConfig(attributes=("site",))).build({}, DATA)
    stage = DemographicStage(DemographicConfig())
    module = stage.build({}, DATA)
    with pytest.raises(ValueError, match="asks for sex"):
        stage.loss(module, replace(batch(2, 0), attributes={}), 0)
    with pytest.raises(ValueError, match="None of the attributes sex has two values"):
        stage.validate(module, [replace(batch(2, 0), attributes={"sex": torch.zeros(2)})])
