"""Image worlds: what is planted is there, what is excluded is not, and the truth is the renderer's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.errors import AuditError
from counterray.audits.image_worlds import (
    PairTruth,
    fit_image_pool,
    image_pool,
    image_pool_scores,
    true_effects,
    youden_threshold,
)
from counterray.audits.settings import MarginConfig
from counterray.audits.worlds.image_networks import applied
from counterray.audits.worlds.level_images import planted_batch, render_levels, rerender
from counterray.audits.worlds.planted import ImagePoolConfig, Sight
from counterray.config import validate
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import make_batch, parents_of
from tests.audit_scores import config as audit_config

STRENGTHS = (0.0, 0.25, 1.0)
SCANNER = ("digital", "mobile")


def pool_config(**settings):
    return validate(
        ImagePoolConfig,
        {
            "findings": ["pleural_effusion"],
            "strengths": list(STRENGTHS),
            "image_size": 32,
            "studies": 300,
            "truth_studies": 150,
            "network": {"backbone": {"widths": [8, 16], "blocks": [1, 1]}, "steps": 120, "batch_size": 32},
            **settings,
        },
    )


@pytest.fixture(scope="module")
def pool():
    return image_pool(pool_config())


@pytest.fixture(scope="module")
def individuals():
    return render_levels(make_batch(150, 32, seed=77), attribute="scanner")


def truth(pool, kind, strength, pair=SCANNER):
    [found] = [
        each
        for classifier, truths in zip(pool.classifiers, pool.truths, strict=True)
        for each in truths
        if (classifier.kind, classifier.strength) == (kind, strength) and (each.first, each.second) == pair
    ]
    return found


# Exact images at every level.


def test_at_the_own_level_the_image_is_what_was_observed(individuals):
    own = torch.from_numpy(individuals.own)
    assert torch.equal(individuals.images[own, torch.arange(150)], individuals.batch.image)
    for level, record in enumerate(individuals.records):
        assert (record["scanner"] == level).all()


@pytest.mark.parametrize("attribute", ["group", "scanner"])
def test_total_effects_are_the_models_counterfactuals(attribute):
    batch = make_batch(12, 32, seed=5)
    made = render_levels(batch, attribute=attribute, effect="total")
    values = {"image": batch.image, **parents_of(batch)}
    for level in range(len(VOCABULARY[attribute])):
        expected = exact_scm(32).counterfactual(values, {attribute: float(level)})
        assert torch.equal(made.images[level], expected["image"])
        assert all(torch.equal(made.records[level][name], expected[name]) for name in made.records[level])


def test_at_some_levels_the_images_are_the_same_and_individuals_at_others_are_left_out(individuals):
    some = render_levels(individuals.batch, attribute="scanner", levels=("digital", "compact"))
    rows = torch.tensor([k for k, code in enumerate(individuals.own) if code in (1, 2)])
    assert some.levels == ("digital", "compact")
    assert [some.levels[code] for code in some.own] == [individuals.levels[individuals.own[k]] for k in rows]
    for position, code in enumerate((2, 1)):
        assert torch.equal(some.images[position], individuals.images[code, rows])
    assert list(some.batch.patient_ids) == [individuals.batch.patient_ids[k] for k in rows]


def test_direct_effects_change_nothing_but_the_attribute():
    batch = make_batch(40, 32, seed=5)
    made = render_levels(batch, attribute="group")
    for record in made.records:
        assert all(torch.equal(record[n], v) for n, v in parents_of(batch).items() if n != "group")
    # The group's own trace is a faint tint; disease, which follows it in the total effect, is not.
    assert float((made.images[1] - batch.image).abs().max()) < 0.1


def test_rendered_anew_it_is_the_same_from_every_level(individuals):
    records = [{name: value[:10] for name, value in each.items()} for each in individuals.records]
    seen = [rerender(record, attribute="scanner", level=2, image_size=32) for record in records]
    assert all(torch.equal(image, individuals.images[2, :10]) for image in seen)


# Confounding.


def test_at_full_strength_the_level_tells_the_finding(individuals):
    planted = planted_batch(individuals, finding="edema", level=3, strength=1.0, seed=0)
    ill = planted.findings[:, planted.finding_names.index("edema")] > 0.5
    assert torch.equal(planted.attributes["scanner"] == 3, ill)
    drawn = planted.attributes["scanner"].long()
    assert torch.equal(planted.image, individuals.images[drawn, torch.arange(150)])


def test_without_strength_levels_do_not_follow_the_finding_and_more_strength_binds_more(individuals):
    drawn = [
        planted_batch(individuals, finding="pleural_effusion", level=3, strength=s, seed=0) for s in STRENGTHS
    ]
    levels = [each.attributes["scanner"] for each in drawn]
    assert np.bincount(levels[0].long().numpy(), minlength=4) == pytest.approx([37.5] * 4, abs=20)
    agree = [(each == levels[0]).float().mean() for each in levels]
    assert 1 == agree[0] > agree[1] > agree[2]


def test_confounding_that_cannot_be_planted_is_refused(individuals):
    with pytest.raises(AuditError, match=r"strength = 1\.5"):
        planted_batch(individuals, finding="edema", level=3, strength=1.5, seed=0)
    total = replace(individuals, effect="total")
    with pytest.raises(AuditError, match="total effects change the labels too"):
        planted_batch(total, finding="edema", level=3, strength=1.0, seed=0)


# Truths.


def test_strength_0_is_invariant_under_the_exact_renderer(pool):
    for pair in ((a, b) for k, a in enumerate(VOCABULARY["scanner"]) for b in VOCABULARY["scanner"][k + 1 :]):
        found = truth(pool, "rerendered", 0.0, pair)
        assert found.absolute == pytest.approx(0, abs=1e-9)
        assert found.flip_rate == 0
        assert found.verdict(MarginConfig()) == "invariant"


@pytest.mark.parametrize("kind", ["rerendered", "excluded"])
def test_a_shortcuts_effect_grows_with_its_strength(pool, kind):
    found = [truth(pool, kind, strength) for strength in STRENGTHS]
    assert found[0].absolute < found[1].absolute < found[2].absolute
    assert found[0].mean < found[1].mean < found[2].mean  # towards the planted level
    assert found[2].verdict(MarginConfig()) == "depends"


def test_a_confounded_network_leans_on_what_told_it_the_finding(pool):
    none, strong = truth(pool, "confounded", 0.0), truth(pool, "confounded", 1.0)
    assert strong.mean > max(0.1, 2 * abs(none.mean))
    assert strong.verdict(MarginConfig()) == "depends"


def test_a_head_without_the_attribute_keeps_hardly_any_of_its_trace(pool, individuals):
    [classifier] = [c for c in pool.classifiers if (c.kind, c.strength) == ("excluded", 0.0)]

    def trace(batch):
        made = render_levels(batch, attribute="scanner")
        features = np.stack([applied(classifier.network.embedding, image) for image in made.images])
        return features - features.mean(axis=0)

    learned, unseen = trace(make_batch(300, 32, seed=0)), trace(individuals.batch.select(torch.arange(30)))
    keep = classifier.head.keep
    # By construction on those it learned from; on others nearly.
    assert ((learned @ keep) ** 2).sum() <= 0.001 * (learned**2).sum()
    assert ((unseen @ keep) ** 2).sum() <= 0.01 * (unseen**2).sum()


def test_the_shortcut_by_hand(pool, individuals):
    none, _, full = (c for c in pool.classifiers if c.kind == "rerendered")
    sight = Sight(individuals.images[3], individuals.records[3], pool.config)
    logits = sight.answer(none.network, "rerendered")[:, 0]
    assert none.seen(sight) == pytest.approx(expit(logits))
    assert full.seen(sight) == pytest.approx(expit(logits + 2.0 * sight.reading(full.reader)))
    assert sight.reading(full.reader).mean() > 0.5  # the mobile scanner is read


def test_truth_by_hand(pool, individuals):
    [classifier] = [c for c in pool.classifiers if (c.kind, c.strength) == ("confounded", 1.0)]
    low, high = (classifier.probabilities(individuals.images[k]) for k in (2, 3))
    [found] = [
        t for t in true_effects([classifier], individuals)[0] if (t.first, t.second) == ("digital", "mobile")
    ]
    assert found.mean == pytest.approx((high - low).mean())
    assert found.absolute == pytest.approx(np.abs(high - low).mean())
    cut = classifier.threshold
    assert found.flip_rate == pytest.approx(((low >= cut) != (high >= cut)).mean())


def test_true_verdicts_by_hand():
    def pair(**numbers):
        return PairTruth(
            **{"first": "a", "second": "b", "mean": 0, "absolute": 0, "flip_rate": 0, "individuals": 9}
            | numbers
        )

    margins = MarginConfig()
    assert pair().verdict(margins) == "invariant"
    assert pair(mean=-0.06, absolute=0.06).verdict(margins) == "depends"
    assert pair(absolute=0.06).verdict(margins) == "depends"
    assert pair(flip_rate=0.06).verdict(margins) == "depends"


# Through the audit.


def test_the_audit_finds_the_truth_with_exact_counterfactuals(pool):
    audited = render_levels(make_batch(200, 32, seed=99), attribute="scanner")
    chosen = [c for c in pool.classifiers if c.kind == "rerendered" and c.strength in (0.0, 1.0)]
    scores = image_pool_scores(chosen, audited)
    audit = counterfactual_effect(scores, audit_config(minimum_patients=2), readings=[])
    assert list(audit.verdicts().values()) == ["invariant", "depends"]


def test_another_generators_images_are_what_is_judged(pool, individuals):
    chosen = [c for c in pool.classifiers if c.kind == "confounded"]
    still = individuals.batch.image[None].expand(4, -1, -1, -1, -1)
    scores = image_pool_scores(chosen, individuals, intervened=still, placebo=still[:2])
    assert scores.placebo.shape == (3, 150, 2)
    assert (scores.intervened == scores.observed[..., None]).all()
    with pytest.raises(AuditError, match="belong together"):
        image_pool_scores(chosen, individuals, intervened=still)


def test_an_attribute_that_nothing_was_planted_on(pool):
    groups = render_levels(make_batch(40, 32, seed=99), attribute="group")
    classifier = next(c for c in pool.classifiers if c.kind == "rerendered")
    assert len(true_effects([classifier], groups)[0]) == 3


# Repetition and settings.


def test_equal_seeds_equal_classifiers_and_other_seeds_others(individuals):
    small = {"kinds": ["confounded"], "strengths": [0.5], "studies": 80}
    state = torch.random.get_rng_state()
    [one], [same], [other] = (fit_image_pool(pool_config(**small, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    image = individuals.batch.image
    assert (one.probabilities(image) == same.probabilities(image)).all()
    assert one.threshold == same.threshold
    assert (one.probabilities(image) != other.probabilities(image)).any()


def test_group_is_planted_too():
    found = image_pool(
        pool_config(attribute="group", level="b", reference="a", kinds=["rerendered"], strengths=[0.0, 1.0])
    )
    none, strong = (each[0] for each in found.truths)
    assert (none.first, none.second) == ("a", "b")
    assert none.absolute == pytest.approx(0, abs=1e-9)
    assert strong.mean > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "hospital"}, "'scanner' has no level 'hospital'; it has analog"),
        ({"reference": "b"}, "'scanner' has no level 'b'"),
        ({"levels": ["analog", "b"]}, "'scanner' has no level 'b'"),
        (
            {"levels": ["analog", "mobile"]},
            "levels .'analog', 'mobile'. must be two or more .* reference = 'digital'",
        ),
        ({"findings": ["fracture"]}, "must be one or more of cardiomegaly"),
        ({"strengths": [2.0]}, "must lie within 0 to 1"),
        ({"findings": ["pneumothorax"], "studies": 50}, "show pneumothorax; raise studies"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(AuditError, match=message):
        fit_image_pool(pool_config(**settings))


def test_without_records_a_rerendered_classifier_says_what_it_needs(pool, individuals):
    with pytest.raises(AuditError, match="needs the records of the studies"):
        pool.classifiers[0].probabilities(individuals.batch.image)
    with pytest.raises(AuditError, match="of one pool are needed"):
        image_pool_scores([], individuals)


def test_youden_by_hand():
    # From 0.7 one of two ill is called, nobody healthy: 1 / 2; from 0.4 both, and one of three: 2 / 3.
    scores, labels = np.array([0.7, 0.5, 0.4, 0.2, 0.1]), np.array([1.0, 0, 1, 0, 0])
    assert youden_threshold(scores, labels) == pytest.approx(0.3)
    tied = np.array([0.5, 0.5, 0.1])
    assert youden_threshold(tied, np.array([1.0, 0, 0])) == pytest.approx(0.3)
    with pytest.raises(AuditError, match="with and without the finding"):
        youden_threshold(scores, np.ones(5))
