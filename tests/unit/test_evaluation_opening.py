from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterray.bundle import Bundle, write_bundle
from counterray.config import ConfigError
from counterray.data.dataset import DatasetInfo, DatasetManifest
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import make_batch
from counterray.evaluation.generator import shuffled_donors, with_attributes
from counterray.evaluation.judge import demographic_judges, judge_metrics, open_judge
from counterray.evaluation.opening import exact_counterfactuals, gather, open_editor, open_generator
from counterray.models.gsvae.stages import GSVAEConfig, GSVAEStage
from counterray.models.pathology_ldm.generator import PathologyLDMGenerator
from counterray.models.pathology_ldm.stages import load
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.models.predictors.regressor import RegressorConfig, RegressorStage
from counterray.models.predictors.segmentor import SegmentorConfig, SegmentorStage
from counterray.storage import resolve
from counterray.training.stage import Stage
from tests.small_pathology_ldm import ldm_bundle, parent_bundles

BATCH = make_batch(12, 32, seed=4)
INFO = DatasetInfo(
    image_size=32,
    finding_names=BATCH.finding_names,
    vocabulary=VOCABULARY,
    measurement_names=tuple(BATCH.measurements),
    mask_names=tuple(BATCH.masks),
)


def bundle(stage: Stage, folder: Path) -> Bundle:
    """The untrained stage as a bundle: what it says is poor, how it is read is the same."""
    torch.manual_seed(0)
    module = stage.build({}, INFO)
    return write_bundle(
        resolve(folder),
        method="test",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(module),
        data_fingerprint="f",
    )


def manifest(source: str) -> DatasetManifest:
    return DatasetManifest(
        study_schema=1,
        source=source,
        config={},
        code_version="1",
        image_size=32,
        finding_names=BATCH.finding_names,
        vocabulary=dict(VOCABULARY),
        counts={},
        quarantined={},
        shards={},
        fingerprint="f",
    )


def gsvae(folder: Path) -> Bundle:
    config = GSVAEConfig.model_validate({"weights": {"identity": 0, "pathology": 0}})
    return bundle(GSVAEStage(config), folder)


JUDGES = {
    "auroc": lambda: ClassifierStage(ClassifierConfig()),
    "dice": lambda: SegmentorStage(SegmentorConfig()),
    "absolute_error": lambda: RegressorStage(RegressorConfig()),
    "identity_top1": lambda: IdentityEncoderStage(IdentityEncoderConfig()),
    "auroc_sex": lambda: DemographicStage(DemographicConfig()),
}


@pytest.mark.parametrize("name", JUDGES)
def test_every_judges_bundle_is_measured_by_what_fits_it(name: str, tmp_path: Path) -> None:
    opened = bundle(JUDGES[name](), tmp_path / "judge")
    metrics = judge_metrics(opened, BATCH, minimum_positives=1)
    assert name in {metric.name for metric in metrics}
    assert {metric.judge for metric in metrics} == {f"{opened.stage}:{opened.checksum[:8]}"}


def test_a_classifiers_answers_are_probabilities(tmp_path: Path) -> None:
    judge = open_judge(bundle(ClassifierStage(ClassifierConfig()), tmp_path / "judge"), name="b")
    scores = judge.scores(BATCH.image)
    assert judge.outputs == BATCH.finding_names
    assert scores.shape == (12, len(BATCH.finding_names))
    assert ((scores > 0) & (scores < 1)).all()
    assert judge.label.startswith("b:")


def test_a_demographic_judge_answers_by_attribute(tmp_path: Path) -> None:
    judges = demographic_judges(bundle(DemographicStage(DemographicConfig()), tmp_path / "judge"))
    assert judges["sex"].outputs == ("female", "male")
    assert torch.allclose(judges["sex"].scores(BATCH.image).sum(dim=1), torch.ones(12))


def test_a_generator_is_no_judge_and_a_judge_no_generator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no judge"):
        judge_metrics(gsvae(tmp_path / "generator"), BATCH)
    with pytest.raises(ValueError, match="'classifier', which edits no images"):
        open_editor(bundle(ClassifierStage(ClassifierConfig()), tmp_path / "judge"))


def test_a_gsvae_bundle_edits_with_the_donors_pathology(tmp_path: Path) -> None:
    edit = open_editor(gsvae(tmp_path / "generator"))
    source = BATCH.select(torch.arange(4))
    donor = BATCH.select(torch.arange(4, 8))
    assert edit(source.image, source, donor).shape == source.image.shape
    # Its own image as donor is the reconstruction.
    own = edit(source.image, source, source.select(torch.arange(4)))
    assert torch.allclose(own, edit(source.image, source, source), atol=1e-6)


def test_settings_reach_the_generator_that_has_some_and_are_refused_elsewhere(tmp_path: Path) -> None:
    ldm = ldm_bundle(tmp_path / "ldm", parent_bundles(tmp_path))
    settings = {"sampler": {"steps": 4}, "abduction": {"noise": "inverted"}}
    made = open_generator(ldm, settings=settings)
    assert isinstance(made, PathologyLDMGenerator)
    assert made.model.abduction.noise == "inverted"
    own = load(ldm).sampler
    assert made.model.sampler == own.model_copy(update={"steps": 4})
    assert own.steps != 3
    edit = open_editor(ldm, {"prompts": "labels", "abduction": {"residual": True}})
    source = BATCH.select(torch.arange(2))
    torch.testing.assert_close(edit(source.image, source, source), source.image, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="optimise goes with findings that are asked for by name"):
        open_editor(ldm, {"optimise": {"iterations": 1}})
    with pytest.raises(ConfigError, match=r"Unknown setting 'step'"):
        open_generator(ldm, settings={"sampler": {"step": 3}})
    with pytest.raises(ConfigError, match="gsvae generator has no settings; leave out sampler"):
        open_generator(gsvae(tmp_path / "gsvae"), settings=settings)


def test_the_phantoms_exact_counterfactuals() -> None:
    exact = exact_counterfactuals(manifest("phantom"))
    assert exact is not None
    donor = shuffled_donors(BATCH)
    there = exact(BATCH, donor)
    assert torch.equal(exact(BATCH, BATCH), BATCH.image)
    differs = (there != BATCH.image).flatten(1).any(dim=1)
    asked = (donor.findings != BATCH.findings).any(dim=1)
    assert asked.any()
    assert differs[asked].all()


def test_real_data_have_no_exact_counterfactuals() -> None:
    assert exact_counterfactuals(manifest("nih_cxr14")) is None


def test_gather_joins_every_field_and_stops_at_the_limit() -> None:
    parts = [BATCH.select(torch.arange(0, 5)), BATCH.select(torch.arange(5, 12))]
    whole = gather(iter(parts))
    assert torch.equal(whole.image, BATCH.image)
    assert whole.patient_ids == BATCH.patient_ids
    assert whole.reports == BATCH.reports
    assert torch.equal(whole.masks["heart"], BATCH.masks["heart"])
    few = gather(iter(parts), limit=7)
    assert len(few) == len(few.patient_ids) == 7
    with pytest.raises(ValueError, match="no image to evaluate"):
        gather([])


def test_the_exact_counterfactual_of_an_attribute_sets_it_and_leaves_pathology() -> None:
    exact = exact_counterfactuals(manifest("phantom"), ("sex",))
    assert exact is not None
    same = exact(BATCH, BATCH)
    assert same is not None
    assert torch.equal(same, BATCH.image)
    donor = with_attributes(BATCH, shuffled_donors(BATCH), ("sex",))
    changed = exact(BATCH, donor)
    assert changed is not None
    other = BATCH.attributes["sex"] != donor.attributes["sex"]
    moved = (changed - BATCH.image).flatten(1).abs().amax(dim=1) > 0
    assert torch.equal(moved, other)
