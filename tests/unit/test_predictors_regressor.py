"""The regressor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.models.predictors.regressor import (
    RegressionTarget,
    Regressor,
    RegressorConfig,
    RegressorStage,
    masked_smooth_l1,
    targets_of,
)
from counterray.training.loop import train
from tests.predictor_toys import DATA, batch, batches, with_unknown

AGE = RegressionTarget(name="age", mean=50.0, deviation=20.0)
AREA = RegressionTarget(name="area.left_lung", mean=64.0, deviation=16.0)


class Constant(torch.nn.Module):
    """Predicts the same numbers for every image."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.values.expand(len(image), -1)


def test_huber_by_hand():
    predicted = torch.tensor([[0.5, 3.0], [2.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])
    # ½ · 0.5², 3 − ½ and 0 over three known targets.
    loss = masked_smooth_l1(predicted, target)
    assert float(loss.detach()) == pytest.approx((0.125 + 2.5) / 3)
    loss.backward()
    assert predicted.grad[1, 0] == 0


def test_an_untrained_head_of_zeros_predicts_the_means():
    module = Regressor(RegressorConfig(targets=(AGE, AREA)), 32)
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    assert module(batch(2, 0).image).tolist() == [[50.0, 64.0], [50.0, 64.0]]
    assert module.bfloat16()(batch(2, 0).image).dtype == torch.float32


def test_targets_come_from_attributes_and_measurements():
    toy = batch(3, 0)
    toy = replace(toy, attributes=with_unknown(toy.attributes, "age", [1]))
    values = targets_of(toy, ("age", "area.left_lung"))
    assert values.dtype == torch.float32
    assert torch.isnan(values).tolist() == [[False, False], [True, False], [False, False]]
    assert values[:, 1].tolist() == toy.measurements["area.left_lung"].tolist()
    with pytest.raises(ValueError, match=r"Setting targets asks for sex.*age, area.left_lung"):
        targets_of(toy, ("sex",))


def test_errors_by_hand_in_natural_units():
    stage = RegressorStage(RegressorConfig())
    toy = batch(4, 0)
    ages = torch.tensor([30.0, 50.0, 70.0, float("nan")])
    metrics = stage.validate(Constant(60.0), [replace(toy, attributes={"age": ages})])
    # Errors 30, 10, 10; squares 1,100 in all against 800 around the mean of 50.
    assert metrics["mae.age"] == pytest.approx(50 / 3)
    assert metrics["r2.age"] == metrics["r2_mean"] == pytest.approx(1 - 1100 / 800)
    with pytest.raises(ValueError, match="None of the targets age varies"):
        stage.validate(Constant(60.0), [replace(toy, attributes={"age": torch.full((4,), 40.0)})])


def test_learns_age_and_area():
    stage = RegressorStage(RegressorConfig(targets=(AGE, AREA)))
    training = batches(6, 32)
    module = train(stage, data=DATA, batches=lambda: training, steps=80, learning_rate=3e-3)
    metrics = stage.validate(module, [batch(96, 50)])
    assert metrics["r2.age"] > 0.6
    assert metrics["r2.area.left_lung"] > 0.6
    assert metrics["mae.age"] < 10


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"Setting targets asks for area.heart.*age, area.left_lung"):
        RegressorStage(
            RegressorConfig(targets=(RegressionTarget(name="area.heart", mean=1.0, deviation=1.0),))
        ).build({}, DATA)
    with pytest.raises(ConfigError, match="name a target twice"):
        validate(RegressorConfig, {"targets": [AGE.model_dump(), AGE.model_dump()]})
    with pytest.raises(ConfigError, match="deviation"):
        validate(RegressorConfig, {"targets": [{"name": "age", "mean": 50, "deviation": 0}]})
