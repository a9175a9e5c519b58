from __future__ import annotations

import pytest
import torch

from counterray.causal.graph import CausalGraph, GraphError, Variable

CHAIN = CausalGraph(
    (
        Variable("age", "continuous", mean=50.0, sd=10.0),
        Variable("sex", "binary"),
        Variable("site", "categorical", size=3),
        Variable("heart", "continuous", mean=2.0, sd=0.5),
        Variable("image", "image"),
    ),
    {"heart": ("age", "sex"), "image": ("heart", "site")},
)


def test_affected_is_the_intervened_and_their_descendants():
    assert CHAIN.affected({"age"}) == {"age", "heart", "image"}
    assert CHAIN.affected({"site"}) == {"site", "image"}
    assert CHAIN.affected({"image"}) == {"image"}
    assert CHAIN.affected(()) == frozenset()


def test_encode_by_hand():
    values = {
        "age": torch.tensor([60.0, 45.0], dtype=torch.float64),
        "sex": torch.tensor([0.0, 1.0]),
        "site": torch.tensor([2.0, 0.0]),
    }
    encoded = CHAIN.encode(values, ("site", "age", "sex"))
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0, -1.0], [1.0, 0.0, 0.0, -0.5, 1.0]])
    torch.testing.assert_close(encoded, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ({"age": torch.tensor([torch.nan])}, ("age",), "'age' has NaN"),
        ({"site": torch.tensor([3.0])}, ("site",), "none of its codes 0 to 2"),
        ({"sex": torch.tensor([torch.nan])}, ("sex",), "none of its codes 0 to 1"),
        ({"image": torch.zeros(1, 1, 4, 4)}, ("image",), "is an image"),
        ({"age": torch.tensor([1.0])}, ("age", "sex"), "No value for sex; given: age"),
        ({"age": torch.tensor([1.0])}, ("ages",), "Unknown variable ages. Known: age, sex"),
    ],
)
def test_encode_refuses(values, names, message):
    with pytest.raises(GraphError, match=message):
        CHAIN.encode(values, names)


def test_graph_refuses_disorder():
    a, b = Variable("a", "continuous"), Variable("b", "continuous")
    with pytest.raises(GraphError, match="'b' comes before its parent 'a'"):
        CausalGraph((b, a), {"b": ("a",)})
    with pytest.raises(GraphError, match="'a' comes before its parent 'a'"):
        CausalGraph((a,), {"a": ("a",)})
    with pytest.raises(GraphError, match="unknown parent 'c'"):
        CausalGraph((a, b), {"b": ("c",)})
    with pytest.raises(GraphError, match="'a' is listed twice"):
        CausalGraph((a, a), {})
    with pytest.raises(GraphError, match="Unknown variable c"):
        CausalGraph((a, b), {"c": ("a",)})


def test_variable_refuses_a_wrong_size_or_scale():
    with pytest.raises(GraphError, match="size 1 is below the 2 categories"):
        Variable("site", "categorical")
    with pytest.raises(GraphError, match="size 3 is for categorical only"):
        Variable("age", "continuous", size=3)
    with pytest.raises(GraphError, match=r"sd 0\.0 must be above 0"):
        Variable("age", "continuous", sd=0.0)
