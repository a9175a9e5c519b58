"""Rare findings of the experiment: what is asked, optimised and timed."""

from itertools import pairwise

import pytest
import torch

from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig
from counterray.models.generator import image_seed
from counterray.models.pathology_ldm.editing import text_editor
from counterray.models.pathology_ldm.stages import load
from jobs.reproduction.causal_disentanglement.bench import RareNoise, rare_findings, shows
from jobs.reproduction.causal_disentanglement.rare import Asked, against_printed
from jobs.reproduction.causal_disentanglement.scores import rare_refinement
from tests.small_pathology_ldm import encoded, ldm_bundle, parent_bundles


def test_rare_findings_are_those_of_at_most_5_percent_rarest_first():
    assert rare_findings({"a": 0.2, "b": 0.05, "c": 0.01}) == ("c", "b")
    assert rare_findings({"a": 0.2, "b": 0.1}) == ("b",)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small trained model, and studies."""
    folder = tmp_path_factory.mktemp("reproduction")
    parents = parent_bundles(folder)
    batch, _ = encoded(parents, count=12)
    return ldm_bundle(folder / "model", parents), batch


def rare_noise(small, **settings):
    bundle, batch = small
    finding = batch.finding_names[0]
    optimise = NoiseOptimisationConfig(steps=2, iterations=3, **settings)
    return RareNoise(load(bundle), batch, (finding,), references=4, optimise=optimise), finding, batch


def test_shows_reads_known_labels_only(small):
    _, batch = small
    finding = batch.finding_names[0]
    for value in (0, 1):
        rows = shows(batch, finding, value)
        assert (batch.findings[rows, 0] == value).all()
        assert batch.finding_mask[rows, 0].all()


def test_too_few_reference_images_are_refused(small):
    bundle, batch = small
    finding = batch.finding_names[0]
    alone = batch.select(torch.cat([shows(batch, finding, 1)[:1], shows(batch, finding, 0)]))
    with pytest.raises(ValueError, match=r"1 of \d+ training images show"):
        RareNoise(load(bundle), alone, (finding,), references=4, optimise=NoiseOptimisationConfig())


def test_optimised_edits_change_only_patients_whose_donor_shows_the_rare_finding(small):
    rare, finding, batch = rare_noise(small)
    order = torch.arange(len(batch)).roll(1)
    donor = batch.select(order)
    images = [
        text_editor(rare.model, source="refined_report", refine=refine)(batch.image, batch, donor)
        for refine in (rare_refinement(rare), None)
    ]
    changed = (images[0] - images[1]).flatten(1).abs().amax(dim=1) > 1e-4
    shown = torch.zeros(len(batch), dtype=torch.bool)
    shown[shows(donor, finding, 1)] = True
    assert shown.any()
    assert not changed[~shown].any()
    assert changed[shown].any()


class _Bench:
    seed, prompts = 5, "refined_report"


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_algorithm_2_is_given_growing_budgets_until_it_is_as_near(small, times):
    rare, finding, batch = rare_noise(small)
    source = batch.select(shows(batch, finding, 0))
    asked = Asked(rare, finding, source, _Bench())
    found = against_printed(asked, samples=2, times=times)
    budgets = [entry["iterations"] for entry in found["trace"]]
    assert budgets[0] == 10
    assert all(before < after <= 2 * before for before, after in pairwise(budgets))
    near = [entry["distance"] <= found["ours"]["distance"] for entry in found["trace"]]
    assert not any(near[:-1])
    assert (found["reached"] is not None) == near[-1]
    assert near[-1] or found["times"] >= times, "what is never as near was given its time"
    last = found["trace"][-1]
    assert found["times"] == pytest.approx(last["seconds"] / found["ours"]["seconds"])
    assert found["samples"] == 2


def test_the_first_studies_are_asked_as_among_all(small):
    rare, finding, batch = rare_noise(small)
    asked = Asked(rare, finding, batch, _Bench())
    part = asked.first(3)
    assert part.seeds.tolist() == [image_seed(5, name) for name in batch.image_ids[:3]]
    whole = asked.image(rare.model.noise(asked.seeds))
    assert torch.allclose(part.image(rare.model.noise(part.seeds)), whole[:3], atol=1e-5)
