"""Who is in the phantom: prevalences, confounding and patients, against the laws that they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterray.data.phantom.population import draw_population
from counterray.data.phantom.scm import (
    AREA_LAWS,
    FINDING_LAWS,
    FINDING_NAMES,
    VOCABULARY,
    finding_probability,
)

COUNT = 40_000
POPULATION = draw_population(7, 0, COUNT, image_size=64)
VALUES = POPULATION.values


def share(finding, rows=slice(None)):
    return float((VALUES[f"severity.{finding}"] > 0)[rows].double().mean())


def test_prevalence_is_long_tailed_with_the_rarest_under_two_percent():
    shares = {name: share(name) for name in FINDING_NAMES}
    assert 0.005 < min(shares.values()) < 0.02
    assert min(shares, key=shares.get) == "pneumothorax"
    assert max(shares.values()) > 0.2
    assert sorted(shares.values(), reverse=True)[:4] == pytest.approx([0.238, 0.197, 0.150, 0.101], abs=0.01)


@pytest.mark.parametrize("finding", FINDING_NAMES)
def test_findings_occur_as_often_as_their_law_says_in_every_group(finding):
    chance = finding_probability(finding, VALUES)
    for group in range(3):
        rows = VALUES["group"] == group
        expected, spread = float(chance[rows].mean()), float((chance * (1 - chance))[rows].sum()) ** 0.5
        assert abs(share(finding, rows) - expected) < 4 * spread / int(rows.sum())


def test_the_law_by_hand():
    at = {"age": torch.tensor([55.0, 95.0, 55.0]), "group": torch.tensor([0.0, 0.0, 1.0])}
    # 0.20 * 0.85; 0.20 * 0.85 * (1 + 0.8); 0.20 * 1.40
    expected = torch.tensor([0.17, 0.306, 0.28], dtype=torch.float64)
    torch.testing.assert_close(finding_probability("cardiomegaly", at), expected)


def test_prevalence_depends_on_group_and_age():
    a, b = VALUES["group"] == 0, VALUES["group"] == 1
    young, old = VALUES["age"] < 40, VALUES["age"] > 70
    assert share("edema", b) > 1.4 * share("edema", a)
    assert share("cardiomegaly", old) > 1.5 * share("cardiomegaly", young)
    assert share("pneumothorax", old) < share("pneumothorax", young)


def test_group_site_and_scanner_are_correlated_and_the_scanner_is_long_tailed():
    for group, site in enumerate((0, 1, 2)):
        at_home = float((VALUES["site"] == site)[VALUES["group"] == group].double().mean())
        assert at_home > 0.45
    scanners = np.bincount(VALUES["scanner"].numpy().astype(int), minlength=4) / COUNT
    assert scanners.max() > 0.5
    assert 0.01 < scanners.min() < 0.05
    analog = [float((VALUES["scanner"] == 0)[VALUES["site"] == site].double().mean()) for site in range(3)]
    assert analog[2] > 2 * analog[0]


def test_patients_have_one_to_three_studies_and_keep_what_belongs_to_them():
    counts = np.bincount(POPULATION.patient)
    assert set(counts[:-1]) == {1, 2, 3}
    assert counts.mean() == pytest.approx(1.7, abs=0.01)
    same = POPULATION.patient[1:] == POPULATION.patient[:-1]
    for name in ("patient_seed", "sex", "group", "site"):
        assert torch.equal(VALUES[name][1:][same], VALUES[name][:-1][same])
    assert bool((VALUES["age"][1:][same] > VALUES["age"][:-1][same]).all())
    assert bool((VALUES["age"][1:][same] < VALUES["age"][:-1][same] + 3.5).all())
    assert bool((VALUES["noise_seed"][1:] != VALUES["noise_seed"][:-1]).all())
    assert (POPULATION.visit[1:][same] == POPULATION.visit[:-1][same] + 1).all()


def test_a_patients_areas_resemble_each_other_more_than_a_strangers():
    same = POPULATION.patient[1:] == POPULATION.patient[:-1]
    area = VALUES["area.right_lung_upper"]
    within = float((area[1:] - area[:-1])[same].abs().mean())
    between = float((area[1:] - area[:-1])[~same].abs().mean())
    assert within < 0.65 * between


def test_areas_follow_sex_and_age():
    male, female = VALUES["sex"] == 1, VALUES["sex"] == 0
    for region, law in AREA_LAWS.items():
        area = VALUES[f"area.{region}"]
        healthy = VALUES["severity.cardiomegaly"] == 0
        ratio = float(area[male & healthy].mean() / area[female & healthy].mean())
        assert ratio == pytest.approx((1 + law.male) / (1 - law.male), abs=0.01)
        assert bool((area > 0.5 * law.mean * 64**2).all())


def test_values_are_exact_in_float32_so_that_storage_cannot_change_them():
    for name, value in draw_population(7, 0, 2000, image_size=512).values.items():
        assert torch.equal(value.float().double(), value), name


def test_a_study_is_the_same_whatever_range_it_is_drawn_in():
    part = draw_population(7, 1234, 1260, image_size=64)
    assert (part.patient == POPULATION.patient[1234:1260]).all()
    for name, value in part.values.items():
        assert torch.equal(value, VALUES[name][1234:1260]), name


def test_another_seed_is_another_population():
    other = draw_population(8, 0, 100, image_size=64).values
    assert not bool((other["noise_seed"] == VALUES["noise_seed"][:100]).any())


def test_codes_fit_the_vocabulary():
    for name, values in VOCABULARY.items():
        assert tuple(sorted(values)) == values
        if name != "view":
            assert set(VALUES[name].unique().tolist()) == set(range(len(values)))
    for name, law in FINDING_LAWS.items():
        assert (f"side.{name}" in VALUES) == (law.sides is not None)
        assert (f"zone.{name}" in VALUES) == (law.zones is not None)
    assert set(VALUES["side.pneumothorax"].unique().tolist()) == {0.0, 1.0}
