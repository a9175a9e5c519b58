"""Laws of exact counterfactuals (Monteiro et al., 2023, https://arxiv.org/abs/2303.01274), to the last bit.

The renderer's composition, reversibility and ground-truth errors are 0: it is the yardstick of every other
image mechanism.
"""

from __future__ import annotations

import pytest
import torch

from counterray.causal.mechanism import Mechanism
from counterray.data.phantom.render import Renderer, exact_scm
from counterray.data.phantom.scm import FINDING_NAMES, REGIONS, pathology_variables, swap_pathology
from counterray.data.phantom.studies import make_batch, parents_of

SIZE = 64
MODEL = exact_scm(SIZE)
ROWS = 10
BATCH = make_batch(ROWS, SIZE, seed=11)
PARENTS = parents_of(BATCH)
OBSERVED = {"image": BATCH.image, **PARENTS}
EFFUSION = {"severity.pleural_effusion": 0.75, "side.pleural_effusion": 0.0}
INTERVENTIONS = {
    "effusion": EFFUSION,
    "cardiomegaly": {"severity.cardiomegaly": 1.0},
    "no cardiomegaly": {"severity.cardiomegaly": 0.0},
    "pneumothorax": {"severity.pneumothorax": 0.5, "side.pneumothorax": 1.0},
    "scanner": {"scanner": 3.0},
    "group": {"group": 2.0},
    "sex": {"sex": 0.0},
    "age": {"age": 81.25},
    "site": {"site": 1.0},
    "heart": {"area.heart": 300.0},
}


def assert_same(first, second):
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name].float(), second[name].float()), name


def test_the_renderer_is_a_mechanism():
    assert isinstance(MODEL.mechanisms["image"], Mechanism)


def test_composition():
    noise = MODEL.abduct(OBSERVED)
    for name, mechanism in MODEL.mechanisms.items():
        parents = {parent: OBSERVED[parent] for parent in MODEL.graph.parents_of(name)}
        again = mechanism.predict(noise[name], parents)
        assert torch.equal(again, OBSERVED[name].to(again.dtype)), name


def test_the_abducted_noise_is_the_true_noise():
    noise = MODEL.mechanisms["image"].abduct(BATCH.image, PARENTS)
    assert torch.equal(noise, torch.stack([PARENTS["patient_seed"], PARENTS["noise_seed"]], dim=1))


def test_null_intervention():
    for name in PARENTS:
        if not name.endswith("_seed"):
            assert_same(MODEL.counterfactual(OBSERVED, {name: OBSERVED[name]}), OBSERVED)


@pytest.mark.parametrize("do", INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_reversibility(do):
    there = MODEL.counterfactual(OBSERVED, do)
    assert not torch.equal(there["image"], BATCH.image) or "site" in do
    assert_same(MODEL.counterfactual(there, {name: OBSERVED[name] for name in do}), OBSERVED)


@pytest.mark.parametrize("do", INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_effectiveness_and_what_is_not_affected(do):
    result = MODEL.counterfactual(OBSERVED, do)
    for name, value in do.items():
        assert bool((result[name] == value).all())
    for name in set(OBSERVED) - MODEL.graph.affected(do):
        assert result[name] is OBSERVED[name]


@pytest.mark.parametrize("do", INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_ground_truth(do):
    """The counterfactual image is the picture of the counterfactual values with the same noise."""
    result = MODEL.counterfactual(OBSERVED, do)
    truth = Renderer(SIZE).predict(
        torch.stack([PARENTS["patient_seed"], PARENTS["noise_seed"]], dim=1), {**result}
    )
    assert torch.equal(result["image"], truth)
    assert MODEL.mechanisms["image"].loss(result["image"], result).eq(0).all()


def test_swapping_pathology_twice_is_identity():
    order = torch.arange(ROWS).roll(3)
    donor = {name: PARENTS[name][order] for name in PARENTS}
    once = MODEL.counterfactual(OBSERVED, swap_pathology(donor))
    assert torch.equal(once["severity.edema"], donor["severity.edema"])
    assert torch.equal(once["area.left_lung_upper"], PARENTS["area.left_lung_upper"])
    assert_same(MODEL.counterfactual(once, swap_pathology(PARENTS)), OBSERVED)
    assert len(pathology_variables()) == 6 + 4 + 2


def test_cardiomegaly_acts_through_the_heart_only():
    worse = MODEL.counterfactual(OBSERVED, {"severity.cardiomegaly": 1.0})
    grown = worse["area.heart"] - OBSERVED["area.heart"]
    expected = 0.055 * SIZE**2 * (1.0 - OBSERVED["severity.cardiomegaly"])
    torch.testing.assert_close(grown, expected, rtol=0, atol=1 / 256)
    held = MODEL.counterfactual(
        OBSERVED, {"severity.cardiomegaly": 1.0, "area.heart": OBSERVED["area.heart"]}
    )
    assert torch.equal(held["image"], BATCH.image)


def test_age_changes_areas_and_findings_in_the_right_direction():
    old = MODEL.counterfactual(OBSERVED, {"age": 90.0, "severity.cardiomegaly": 0.0})
    young = MODEL.counterfactual(OBSERVED, {"age": 20.0, "severity.cardiomegaly": 0.0})
    assert bool((old["area.heart"] > young["area.heart"]).all())
    assert bool((old["area.right_lung_upper"] < young["area.right_lung_upper"]).all())
    assert bool((old["severity.edema"] >= young["severity.edema"]).all())
    assert bool((old["severity.pneumothorax"] <= young["severity.pneumothorax"]).all())


def test_a_finding_changes_the_image_only_around_itself():
    healthy = MODEL.counterfactual(OBSERVED, {f"severity.{name}": 0.0 for name in FINDING_NAMES})
    ill = MODEL.counterfactual(healthy, EFFUSION)
    changed = (ill["image"] != healthy["image"])[:, 0]
    assert bool(changed.flatten(1).any(dim=1).all())
    assert not bool(changed[:, :, : SIZE // 2 - 8].any()), "a left effusion must not reach the right lung"
    assert not bool(changed[:, : SIZE // 4].any()), "an effusion must not reach the apex"
    masks = MODEL.mechanisms["image"].masks(ill)
    before = MODEL.mechanisms["image"].masks(healthy)
    assert bool((masks["lesion"].sum(dim=(1, 2, 3)) > 0).all())
    assert bool((before["lesion"] == 0).all())
    for name in ("left_lung", "right_lung", "heart"):
        assert torch.equal(masks[name], before[name])


def test_a_group_leaves_a_faint_signature_only():
    noise = MODEL.mechanisms["image"].abduct(BATCH.image, PARENTS)
    renderer = MODEL.mechanisms["image"]
    images, masks = [], []
    for code in range(3):
        parents = {**PARENTS, "group": torch.full_like(PARENTS["group"], code)}
        images.append(renderer.predict(noise, parents))
        masks.append(renderer.masks(parents))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        difference = (images[first] - images[second]).abs().mean(dim=(1, 2, 3))
        assert bool((difference > 0.005).all())
        assert bool((difference < 0.016).all()), "about two grey levels of 255 at most"
        assert all(torch.equal(masks[first][name], masks[second][name]) for name in masks[first])


def test_group_acts_on_findings_but_not_on_areas():
    other = MODEL.counterfactual(
        OBSERVED, {"group": (OBSERVED["group"] + 1) % 3, "severity.cardiomegaly": 0.0}
    )
    for region in REGIONS[:4]:
        assert other[f"area.{region}"] is OBSERVED[f"area.{region}"]


def test_abduction_refuses_an_image_that_its_parents_do_not_render():
    renderer = MODEL.mechanisms["image"]
    image = BATCH.image.clone()
    image[3, 0, 10, 10] += 2 / 255
    with pytest.raises(ValueError, match=r"1 of 10 images \(first row: 3\)"):
        renderer.abduct(image, PARENTS)
    assert renderer.loss(image, PARENTS).isinf().tolist() == [row == 3 for row in range(ROWS)]
    off_grid = BATCH.image + 0.3 / 255
    with pytest.raises(ValueError, match="10 of 10"):
        renderer.abduct(off_grid, PARENTS)
    with pytest.raises(ValueError, match=r"missing: area\.heart"):
        renderer.abduct(BATCH.image, {n: v for n, v in PARENTS.items() if n != "area.heart"})


def test_sample_is_another_patient_with_the_same_values():
    renderer = MODEL.mechanisms["image"]
    sampled = renderer.sample(PARENTS, torch.Generator().manual_seed(0))
    again = renderer.sample(PARENTS, torch.Generator().manual_seed(0))
    assert torch.equal(sampled, again)
    assert bool((sampled != BATCH.image).flatten(1).any(dim=1).all())
