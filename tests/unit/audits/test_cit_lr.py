"""CIT-LR: identities that hold whatever the networks say, the published defects, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind, ttest_rel

from counterray.audits.cit_lr import CitLrConfig, Rows, _fitted, _tested, cit_lr
from counterray.audits.errors import AuditError
from counterray.audits.nuisance import NuisanceConfig, fit_networks

QUICK = {"nuisance": {"epochs": 60, "patience": 10, "learning_rate": 0.02}}


def rows(size=200, dependence=(0.0, 2.0), seed=0):
    """Decisions of one classifier for each dependence on A; Z is independent of A."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(size, 3))
    groups = random.integers(0, 2, size)
    said = [z[:, 0] + strength * (groups - 0.5) > 0 for strength in dependence]
    return Rows(
        predictions=np.array(said, dtype=float),
        groups=groups,
        representation=z,
        patients=[f"p{k:04d}" for k in range(size)],
    )


def test_statistics_by_hand():
    said, f, g = (
        np.array([[1.0, 0, 1, 1]]),
        np.array([[0.9, 0.2, 0.8, 0.6]]),
        np.array([[0.7, 0.3, 0.5, 0.6]]),
    )
    data = Rows(
        predictions=said,
        groups=np.array([0, 1, 0, 1]),
        representation=np.zeros((4, 1)),
        patients=list("abcd"),
    )
    shipped = _tested(data, f, g, np.arange(4), CitLrConfig.as_shipped(), levels=2)
    left, right = np.array([0.9, 0, 0.8, 0.6]), np.array([0.7, 0, 0.5, 0.6])
    assert shipped.delta == pytest.approx([0.5 / 4])
    assert shipped.p_value == pytest.approx([ttest_rel(left, right).pvalue])
    assert shipped.p_two_sample == pytest.approx([ttest_ind(left, right).pvalue])
    gain = np.array([0.09 - 0.01, 0.09 - 0.04, 0.25 - 0.04, 0])
    assert shipped.orthogonal_delta == pytest.approx([gain.mean()])
    assert shipped.effect == pytest.approx([gain.mean() / 0.25])
    assert shipped.brier_f == pytest.approx([(0.01 + 0.04 + 0.04 + 0.16) / 4])
    one_sided = _tested(data, f, g, np.arange(4), CitLrConfig(), levels=2)
    assert one_sided.p_value == pytest.approx([ttest_rel(left, right, alternative="greater").pvalue])
    three = _tested(data, f, g, np.arange(4), CitLrConfig(), levels=3)
    assert math.isnan(three.effect[0])


def test_a_dependence_is_found_and_its_effect_is_the_flip_rate():
    found = cit_lr(rows(size=800), CitLrConfig(), attribute="A", levels=["a", "b"])
    assert found.p_orthogonal[0] > 0.01
    assert found.p_orthogonal[1] < 1e-6
    # P(|Z| < 1) = 0.683 of the decisions flip.
    assert found.effect[0] == pytest.approx(0, abs=0.1)
    assert found.effect[1] == pytest.approx(0.683, abs=0.15)
    assert found.rows == 800


def test_a_seed_repeats_the_test_and_another_moves_it():
    first, again, other = (
        cit_lr(rows(), CitLrConfig(seed=seed, **QUICK), attribute="A", levels=["a", "b"])
        for seed in (0, 0, 1)
    )
    assert (first.p_value == again.p_value).all()
    assert (first.p_value != other.p_value).all()


def test_constant_predictions_have_no_p_value_as_shipped_and_p_one_as_meant():
    data = rows()
    constant = Rows(
        predictions=np.zeros((1, 200)),
        groups=data.groups,
        representation=data.representation,
        patients=data.patients,
    )
    config = CitLrConfig.as_shipped().model_copy(update={"nuisance": NuisanceConfig(epochs=5)})
    shipped = cit_lr(constant, config, attribute="A", levels=["a", "b"], learning=constant)
    assert math.isnan(shipped.p_value[0])
    meant = cit_lr(constant, CitLrConfig(**QUICK), attribute="A", levels=["a", "b"])
    assert (meant.p_orthogonal[0], meant.orthogonal_delta[0]) == (1, 0)


def test_relabelling_the_levels_changes_nothing_that_is_orthogonal():
    f, g = _fitted(rows(), rows(seed=1), 2, CitLrConfig(nuisance=NuisanceConfig(epochs=30)), seed=0)
    data = rows(seed=1)
    swapped = Rows(
        predictions=1 - data.predictions,
        groups=data.groups,
        representation=data.representation,
        patients=data.patients,
    )
    patients = np.arange(200)
    as_is = _tested(data, f, g, patients, CitLrConfig(), levels=2)
    other = _tested(swapped, 1 - f, 1 - g, patients, CitLrConfig(), levels=2)
    assert other.orthogonal_delta == pytest.approx(as_is.orthogonal_delta)
    assert other.p_orthogonal == pytest.approx(as_is.p_orthogonal)
    # The published statistic is not invariant to it: rows with a decision of 0 add nothing.
    assert other.p_value != pytest.approx(as_is.p_value)


def test_readings_go_with_their_rows():
    with pytest.raises(AuditError, match="'split' needs learning rows"):
        cit_lr(rows(), CitLrConfig.as_shipped(), attribute="A", levels=["a", "b"])
    with pytest.raises(AuditError, match="'cross_fit' takes no learning rows"):
        cit_lr(rows(), CitLrConfig(), attribute="A", levels=["a", "b"], learning=rows())
    with pytest.raises(AuditError, match="folds = 1; cross-fitting needs 2"):
        cit_lr(rows(), CitLrConfig(folds=1), attribute="A", levels=["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.full((2, 200), np.nan)}, "400 of 400 scores are no finite numbers"),
        ({"representation": np.full((200, 3), np.inf)}, "must be finite"),
        ({"groups": np.zeros(200, dtype=int)}, "level 'b' has 0 patients; minimum_patients = 10"),
    ],
)
def test_input_that_cannot_be_tested(change, message):
    data = rows()
    values = {name: getattr(data, name) for name in ("predictions", "groups", "representation", "patients")}
    with pytest.raises(AuditError, match=message):
        cit_lr(Rows(**(values | change)), CitLrConfig(), attribute="A", levels=["a", "b"])


# The networks.


def test_a_network_of_a_pool_is_what_it_would_be_alone():
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 4, generator=random), torch.rand(3, 60, generator=random).round()
    config = NuisanceConfig(epochs=40)
    # The same initial weights are the first of three and of one: the draws are ordered by layer.
    together = fit_networks(inputs, targets[:1].repeat(3, 1), config, seed=0)
    wanted = together.probabilities(inputs)
    model = torch.nn.Sequential(
        *(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.ReLU()),
        *(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Sigmoid()),
    )
    from counterray.audits.nuisance import _initial

    start = _initial(3, 4, config.hidden, torch.Generator().manual_seed(0))
    linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linears, start.weights, start.biases, strict=True):
            layer.weight.copy_(weight[0].T)
            layer.bias.copy_(bias[0, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for _ in range(config.epochs):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy(model(inputs).squeeze(-1), targets[0]).backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.allclose(model(inputs).squeeze(-1), wanted[0], atol=1e-5)


def test_early_stopping_keeps_networks_from_learning_noise():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 10, generator=random)
    targets = torch.rand(4, 80, generator=random).round()
    long = fit_networks(inputs, targets, NuisanceConfig(epochs=500, learning_rate=0.02), seed=0)
    short = fit_networks(inputs, targets, NuisanceConfig(epochs=500, learning_rate=0.02, patience=10), seed=0)
    fresh = torch.randn(200, 10, generator=random)
    spread = [networks.probabilities(fresh).std() for networks in (long, short)]
    assert spread[1] < spread[0] / 2
