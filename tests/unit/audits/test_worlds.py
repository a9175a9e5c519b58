"""The tabular worlds: equations, exact and learned counterfactuals, and the pool whose truth is known."""

import numpy as np
import pytest

from counterray.audits.errors import AuditError
from counterray.audits.worlds.equations import WORLDS, World, WorldConfig
from counterray.audits.worlds.generators import ExactGenerator, LevelRegression, StructuralModel
from counterray.audits.worlds.pool import (
    SEEDS_OF_KIND,
    STRENGTHS,
    fit_pool,
    own_decisions,
    pool_scores,
    true_accuracy,
)


def world(name="linear", **settings):
    return World(WorldConfig(name=name, size=8, **settings))


def test_equations_by_hand():
    small = World(WorldConfig(name="linear", size=2, steps=2, noise=0.0))
    drawn = small.individuals(3, seed=0)
    zero, one = small.mixing[0]
    mixed = np.where(drawn.own[:, None] == 1, drawn.root @ one.T, drawn.root @ zero.T)
    seen = small.features(drawn)
    assert seen.mixed == pytest.approx(mixed @ small.measure.T + small.offset)
    assert seen.root == pytest.approx(drawn.root @ small.measure.T + small.offset)
    assert np.abs(zero).sum(axis=1) == pytest.approx([1, 1])


def test_a_counterfactual_at_the_own_level_is_what_was_observed():
    here = world()
    drawn = here.individuals(50, seed=0)
    assert (here.features(drawn, drawn.own).mixed == here.features(drawn).mixed).all()


def test_there_and_back_is_where_it_began_and_the_root_never_moves():
    here = world()
    drawn = here.individuals(50, seed=0)
    flipped = here.features(drawn, 1 - drawn.own)
    assert (flipped.root == here.features(drawn).root).all()
    assert (flipped.mixed != here.features(drawn).mixed).any(axis=1).all()


@pytest.mark.parametrize("name", [*WORLDS, "relu"])
def test_every_corrected_world_has_both_labels_and_none_depends_on_a(name):
    here = World(WorldConfig(name=name))
    drawn = here.individuals(4000, seed=0)
    labels = here.labels(drawn)
    assert 0.35 < labels.mean() < 0.65
    assert labels[drawn.own == 1].mean() == pytest.approx(labels[drawn.own == 0].mean(), abs=0.06)


def test_as_shipped_has_the_defects_of_the_published_code():
    shipped = world(reading="as_shipped", seed=1)
    # N_t is constant: individuals of level 0 see copies of one number.
    assert (shipped.mixing[0][0] == 1 / 8).all()
    # The test is handed a descendant of A, not the root.
    drawn = shipped.individuals(500, seed=0)
    assert (shipped.representation(drawn) == shipped.latents(drawn)[1]).all()
    assert (world().representation(drawn) == drawn.root).all()
    # Counterfactuals come from other matrices, far out of what was seen.
    other = shipped.shipped_counterfactual(drawn, seed=0)
    assert other.mixed.std() > 20 * shipped.features(drawn).mixed.std()


def test_a_seed_repeats_a_world():
    first, again, other = (world(seed=seed).individuals(5, seed=0) for seed in (0, 0, 1))
    assert (first.root == again.root).all()
    assert (first.root != other.root).any()


# Generators.


def test_the_exact_generator_repeats_itself_unless_it_draws_noise():
    here = world()
    drawn = here.individuals(20, seed=0)
    kept, fresh = ExactGenerator(here), ExactGenerator(here, noise="redrawn")
    one, two = (kept.counterfactual(drawn, drawn.own, draw=k).mixed for k in (0, 1))
    assert (one == two).all()
    one, two = (fresh.counterfactual(drawn, drawn.own, draw=k).mixed for k in (0, 1))
    assert (one != two).all()
    assert np.abs(one - two).max() < 10 * 0.01


def test_the_learned_model_is_near_the_truth():
    here = World(WorldConfig(name="linear"))
    drawn = here.individuals(1000, seed=0)
    model = StructuralModel(here, drawn.select(slice(0, 800)))
    fresh = drawn.select(slice(800, 1000))
    other = 1 - fresh.own
    learned, exact = model.counterfactual(fresh, other, draw=0), here.features(fresh, other)
    moved = np.abs(exact.mixed - here.features(fresh).mixed).mean()
    assert np.abs(learned.mixed - exact.mixed).mean() < 0.5 * moved
    assert (learned.root == exact.root).all()


def test_the_learned_model_s_null_intervention_changes_nothing():
    here = world()
    drawn = here.individuals(200, seed=0)
    for graph in ("known", "unknown"):
        made = StructuralModel(here, drawn, graph=graph).counterfactual(drawn, drawn.own, draw=0)
        assert (made.mixed == here.features(drawn).mixed).all()
        assert (made.root == here.features(drawn).root).all()


def test_without_the_graph_the_root_s_features_move_a_little():
    here = world(noise=0.3)
    drawn = here.individuals(200, seed=0)
    made = StructuralModel(here, drawn, graph="unknown").counterfactual(drawn, 1 - drawn.own, draw=0)
    moved = np.abs(made.root - here.features(drawn).root).mean()
    assert 0 < moved < 0.3


def test_a_regression_for_each_level_by_hand():
    # At level 0 outputs are (x, 1), at level 1 (-x, 2 x); one row of level 1 is off by (0.3, 0).
    inputs, levels = np.array([[0.0], [1], [2], [0], [1], [2]]), np.array([0, 0, 0, 1, 1, 1])
    x = inputs[:, 0]
    outputs = np.where(levels[:, None] == 0, np.stack([x, x * 0 + 1], 1), np.stack([-x, 2 * x], 1))
    outputs[4, 0] += 0.3
    model = LevelRegression(inputs, outputs, levels)
    assert model.mean(np.array([[3.0], [3.0]]), np.array([0, 1])) == pytest.approx(
        np.array([[3.0, 1.0], [-2.9, 6.0]])
    )
    drawn = model.residuals(np.ones(50, dtype=int), np.random.default_rng(0))
    assert set(np.round(drawn[:, 0], 9)) == {-0.1, 0.2}
    assert drawn[:, 1] == pytest.approx(np.zeros(50))


def test_a_model_needs_enough_rows():
    here = world()
    with pytest.raises(AuditError, match="a structural model of 8 inputs needs 10 or more"):
        StructuralModel(here, here.individuals(12, seed=0))


# The pool.


@pytest.fixture(scope="module")
def pool():
    here = world()
    learning = here.individuals(120, seed=0)
    return here, fit_pool(here, learning, strengths=(0.0, 1.0))


def test_the_pool_has_ten_classifiers_a_strength(pool):
    _, classifiers = pool
    assert sum(SEEDS_OF_KIND.values()) * len(STRENGTHS) == 60
    assert len(classifiers) == 20
    assert len({each.name for each in classifiers}) == 20


def test_strength_zero_is_invariant_by_construction_and_one_is_not(pool):
    here, classifiers = pool
    truth = true_accuracy(here, classifiers, individuals=500)
    assert (truth[:10] == 1).all()
    assert (truth[10:] < 0.95).all()


def test_scores_of_the_pool_fit_the_audit(pool):
    here, classifiers = pool
    audited = here.individuals(40, seed=1)
    scores = pool_scores(here, classifiers, audited, ExactGenerator(here))
    assert scores.intervened.shape == (20, 40, 2)
    own = np.take_along_axis(scores.intervened, audited.own[None, :, None], axis=2)[..., 0]
    assert (own == scores.observed).all()
    assert (scores.placebo[..., 0] == scores.observed).all()
    assert (scores.intervened[:10, :, 0] == scores.intervened[:10, :, 1]).all()
    assert own_decisions(scores).shape == (20, 40)


def test_null_generators_take_the_place_of_null_interventions(pool):
    here, classifiers = pool
    learning, audited = here.individuals(120, seed=0), here.individuals(40, seed=1)
    null = [StructuralModel(here, learning, graph="unknown", shuffled=k) for k in range(3)]
    scores = pool_scores(
        here, classifiers, audited, StructuralModel(here, learning, graph="unknown"), null_generators=null
    )
    assert scores.placebo_unit == "generator"
    assert scores.placebo.shape == (20, 40, 3)
    assert (scores.placebo[0] != scores.observed[0][:, None]).any()
