"""The engine on a linear model, where every counterfactual can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from counterray.causal.graph import CausalGraph, GraphError, Variable
from counterray.causal.mechanism import Mechanism
from counterray.causal.scm import SCM


@dataclass(frozen=True)
class Linear:
    """value = sum of weight * parent + noise."""

    weights: dict[str, float]

    def _mean(self, parents):
        return sum(weight * parents[name] for name, weight in self.weights.items())

    def loss(self, value, parents):
        return 0.5 * self.abduct(value, parents) ** 2

    def abduct(self, value, parents):
        return value - self._mean(parents)

    def predict(self, noise, parents):
        return self._mean(parents) + noise

    def sample(self, parents, generator):
        mean = self._mean(parents)
        return mean + torch.randn(mean.shape, generator=generator)


GRAPH = CausalGraph(
    tuple(Variable(name, "continuous") for name in ("dose", "age", "pressure", "risk")),
    {"pressure": ("dose", "age"), "risk": ("pressure", "age")},
)
MODEL = SCM(
    GRAPH, {"pressure": Linear({"dose": -2.0, "age": 1.0}), "risk": Linear({"pressure": 3.0, "age": 1.0})}
)
OBSERVED = {
    "dose": torch.tensor([1.0, 0.0]),
    "age": torch.tensor([4.0, 2.0]),
    "pressure": torch.tensor([3.0, 2.0]),  # noise 1 and 0
    "risk": torch.tensor([10.0, 8.0]),  # noise -3 and 0
}


def test_a_linear_mechanism_is_a_mechanism():
    assert isinstance(MODEL.mechanisms["risk"], Mechanism)


def test_abduct_by_hand():
    noise = MODEL.abduct(OBSERVED)
    assert noise["pressure"].tolist() == [1.0, 0.0]
    assert noise["risk"].tolist() == [-3.0, 0.0]
    assert set(MODEL.abduct(OBSERVED, ["risk"])) == {"risk"}


def test_counterfactual_by_hand():
    # pressure = -2 * 2 + age + noise = [1, -2]; risk = 3 * pressure + age + noise = [4, -4]
    result = MODEL.counterfactual(OBSERVED, {"dose": 2.0})
    assert result["dose"].tolist() == [2.0, 2.0]
    assert result["pressure"].tolist() == [1.0, -2.0]
    assert result["risk"].tolist() == [4.0, -4.0]


def test_an_intervened_variable_ignores_its_parents():
    result = MODEL.counterfactual(OBSERVED, {"dose": 2.0, "pressure": torch.tensor([5.0, 6.0])})
    assert result["pressure"].tolist() == [5.0, 6.0]
    assert result["risk"].tolist() == [16.0, 20.0]


def test_what_is_not_affected_is_the_very_same_tensor():
    result = MODEL.counterfactual(OBSERVED, {"pressure": 0.0})
    assert result["age"] is OBSERVED["age"]
    assert result["dose"] is OBSERVED["dose"]
    assert all(MODEL.counterfactual(OBSERVED, {})[name] is value for name, value in OBSERVED.items())


def test_an_unobserved_descendant_is_left_out():
    partial = {name: OBSERVED[name] for name in ("dose", "age", "pressure")}
    assert set(MODEL.counterfactual(partial, {"dose": 2.0})) == {"dose", "age", "pressure"}


def test_the_engine_refuses_what_it_cannot_answer():
    with pytest.raises(GraphError, match=r"Unknown variable does\. Known: dose, age"):
        MODEL.counterfactual(OBSERVED, {"does": 1.0})
    with pytest.raises(GraphError, match="'pressure' needs the value of age"):
        MODEL.counterfactual({n: v for n, v in OBSERVED.items() if n != "age"}, {"dose": 1.0})
    with pytest.raises(GraphError, match=r"do\(dose\) has 3 rows, but 2 were observed"):
        MODEL.counterfactual(OBSERVED, {"dose": torch.zeros(3)})
    with pytest.raises(GraphError, match="at least one observed"):
        MODEL.counterfactual({}, {"dose": 1.0})


def test_a_model_needs_a_mechanism_for_every_child_and_a_variable_for_every_mechanism():
    with pytest.raises(GraphError, match="No mechanism for risk"):
        SCM(GRAPH, {"pressure": Linear({})})
    with pytest.raises(GraphError, match="Unknown variable weight"):
        SCM(GRAPH, {**MODEL.mechanisms, "weight": Linear({})})
