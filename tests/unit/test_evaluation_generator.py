"""The whole evaluation on a world of two pixels' worth of causality, where every answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterray.causal.mechanism import Values
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import editor, swap_editor
from counterray.evaluation.features import LayerJudge
from counterray.evaluation.generator import (
    Judges,
    evaluate_counterfactuals,
    make_counterfactuals,
    shuffled_donors,
)
from counterray.evaluation.metric import Judge, as_json
from counterray.evaluation.metric_sections import metrics_section
from counterray.evaluation.settings import Settings
from counterray.evaluation.wording import QUESTIONS

SIZE = 16
NAMES = ("edema", "cardiomegaly")


def draw(anatomy: Tensor, findings: Tensor) -> Tensor:
    """A heart of ``anatomy`` columns, doubled by cardiomegaly, and a brighter lower half under edema."""
    columns = torch.arange(SIZE)
    wide = (anatomy * (1 + findings[:, 1]))[:, None]
    image = torch.full((len(anatomy), 1, SIZE, SIZE), -0.8)
    image[:, :, : SIZE // 2] = torch.where(columns < wide, 0.9, -0.8)[:, None, None, :]
    image[:, :, SIZE // 2 :] += 0.5 * findings[:, 0, None, None, None]
    # A faint stripe names the patient, whatever the findings.
    image[:, :, -1, :] += 0.01 * anatomy[:, None, None]
    return image


def world(count: int = 60, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    findings = (torch.rand(count, 2, generator=random) < 0.4).float()
    anatomy = 2 + torch.arange(count) % 5 + torch.rand(count, generator=random) * 0.9
    return Batch(
        image=draw(anatomy, findings),
        attributes={},
        findings=findings,
        finding_mask=torch.ones(count, 2, dtype=torch.bool),
        finding_names=NAMES,
        measurements={"anatomy": anatomy.double()},
        patient_ids=tuple(f"p{row}" for row in range(count)),
    )


def others(who: str, seed: int) -> Batch:
    """Images of other patients."""
    drawn = world(seed=seed)
    return replace(drawn, patient_ids=tuple(f"{who}{name}" for name in drawn.patient_ids))


def exact(source: Batch, donor: Batch) -> Tensor:
    return draw(source.measurements["anatomy"].float(), donor.findings)


def perfect(image: Tensor, source: Batch, target: Batch) -> Tensor:
    """Reads the anatomy off the stripe, as an exact mechanism abducts it, and draws again."""
    stripe = image[:, 0, -1, 0] + 0.8 - 0.5 * source.findings[:, 0]
    return draw(stripe / 0.01, target.findings)


def nothing(image: Tensor, source: Batch, target: Batch) -> Tensor:
    return image


def read_findings(image: Tensor) -> Tensor:
    edema = image[:, 0, SIZE // 2 : -1].mean(dim=(1, 2)) + 0.8
    heart = (image[:, 0, 0] > 0).sum(dim=1) / 10
    return torch.stack([heart.clamp(0, 1), edema.clamp(0, 1)], dim=1)


JUDGES = Judges(
    classifier=Judge(
        name="classifier", checksum="aaaaaaaaaa", predict=read_findings, outputs=("cardiomegaly", "edema")
    ),
    segmentor=Judge(
        name="segmentor", checksum="bb", predict=lambda image: (image > 0.3).float(), outputs=("heart",)
    ),
    identity=Judge(
        name="identity",
        checksum="cc",
        predict=lambda image: torch.stack([image[:, 0, -1, 0] % 0.1, torch.full((len(image),), 0.05)], dim=1),
    ),
)


def values(edit: object, **options: object) -> Mapping[str, float]:
    source = world()
    evaluation = evaluate_counterfactuals(
        edit,
        source,
        shuffled_donors(source),
        judges=JUDGES,
        exact=exact,
        settings=Settings(minimum_positives=5, batch_size=16),
        **options,
    )
    return {metric.key: metric.value for metric in evaluation.metrics}


def test_the_exact_mechanism_reaches_every_optimum() -> None:
    found = values(perfect)
    assert found["effectiveness_auroc[edema]"] == 1.0
    assert found["ground_truth_error"] == pytest.approx(0.0, abs=1e-6)
    assert found["ground_truth_error_where_changed"] == pytest.approx(0.0, abs=1e-6)
    assert found["composition_error[10 cycles]"] == pytest.approx(0.0, abs=1e-6)
    assert found["reversibility_error[10 cycles]"] == pytest.approx(0.0, abs=1e-6)
    assert found["area_deviation[heart]"] == 0.0
    assert found["reconstruction_ssim"] == pytest.approx(1.0)
    assert found["identity_top1"] == found["identity_top1[exact counterfactual]"] > 0.0
    change = found["off_target_change[exact counterfactual]"]
    assert found["off_target_change"] == pytest.approx(change, abs=1e-6)


def test_doing_nothing_keeps_the_patient_and_misses_the_target() -> None:
    found = values(nothing)
    assert found["identity_top1"] == 1.0
    assert found["off_target_change"] == 0.0
    assert found["effectiveness_auroc[edema]"] == found["no_edit_auroc[edema]"]
    assert found["effectiveness_auroc[edema]"] < 0.75
    assert found["ground_truth_error"] == found["ground_truth_error[no edit]"] > 0.0
    assert found["area_deviation[heart]"] >= 0.0


def test_the_retrieval_baseline_appears_with_training_images() -> None:
    found = values(perfect, training=others("t", 5))
    assert found["ground_truth_error[nearest training image]"] > 0.0


def test_without_truth_or_judges_the_reasons_stand_in_their_place() -> None:
    source = world()
    evaluation = evaluate_counterfactuals(nothing, source, shuffled_donors(source), judges=Judges())
    assert {metric.name for metric in evaluation.metrics} == {
        "reconstruction_ssim",
        "reconstruction_psnr",
        "composition_error",
        "redrawing_error",
        "reversibility_error",
    }
    assert set(evaluation.absent) == {
        "effectiveness, off-target change",
        "identity",
        "ground truth error, area deviation",
        "distances between sets of images, diversity, memorisation",
        "perceptual distance",
        "NIQE",
    }
    assert "not known" in evaluation.absent["ground truth error, area deviation"]


def test_every_judged_number_names_its_judge() -> None:
    source = world()
    evaluation = evaluate_counterfactuals(
        perfect,
        source,
        shuffled_donors(source),
        judges=JUDGES,
        exact=exact,
        settings=Settings(minimum_positives=5),
    )
    named = {metric.name: metric.judge for metric in evaluation.metrics}
    assert named["effectiveness_auroc_macro"] == "classifier:aaaaaaaa"
    assert named["area_deviation"] == "segmentor:bb"
    assert named["identity_rank"] == "identity:cc"
    assert named["ground_truth_error"] is None
    assert all(metric.low <= metric.value <= metric.high for metric in evaluation.metrics)


def test_every_number_has_its_place_and_its_own_name() -> None:
    source = world()
    flat = Judge(name="features", checksum="dd", predict=lambda image: image[:, 0, ::5, ::5].flatten(1))
    layers = LayerJudge(name="layers", checksum="ee", layers=lambda image: [image])
    evaluation = evaluate_counterfactuals(
        perfect,
        source,
        shuffled_donors(source),
        judges=replace(JUDGES, features=flat, layers=layers),
        exact=exact,
        training=others("t", 5),
        validation=others("v", 6),
        prevalence={"edema": 0.4, "cardiomegaly": 0.04},
        settings=Settings(minimum_positives=5),
    )
    found = as_json(evaluation.metrics)
    assert found["effectiveness_ratio[edema]"]["value"] == 1.0
    assert (
        found["effectiveness_ratio_macro[rare]"]["value"]
        == found["effectiveness_ratio[cardiomegaly]"]["value"]
    )
    assert found["generated_f1[edema]"]["value"] == found["real_f1[edema]"]["value"] == 1.0
    assert found["kernel_distance"]["judge"] == "features:dd"
    assert set(evaluation.absent) == {"NIQE", "memorisation"}
    # What a reader finds under no question would stand under "Further metrics".
    placed = {name for names in QUESTIONS.values() for name in names}
    assert {m.name for m in evaluation.metrics if m.subset.split(", ")[0] not in NAMES} <= placed
    captions = [getattr(block, "caption", "") for block in metrics_section(evaluation).shown]
    assert "Finding by finding" in captions
    assert "Further metrics" not in captions


def test_validation_images_of_other_findings_are_refused() -> None:
    source = world()
    other = replace(others("v", 6), finding_names=NAMES[::-1])
    with pytest.raises(ValueError, match=r"asked for \(edema, cardiomegaly\) are not those of the valid"):
        evaluate_counterfactuals(nothing, source, source, judges=JUDGES, validation=other)


def test_laws_may_be_tried_on_fewer_images() -> None:
    source = world()
    evaluation = evaluate_counterfactuals(
        nothing,
        source,
        shuffled_donors(source),
        judges=Judges(),
        settings=Settings(law_images=20, batch_size=16),
    )
    counted = {metric.name: metric.n for metric in evaluation.metrics}
    assert counted["composition_error"] == counted["reversibility_error"] == 20
    assert counted["reconstruction_ssim"] == 60


def test_a_law_that_holds_by_construction_says_so_and_redrawing_shows_what_an_edit_adds() -> None:
    def brighter(image: Tensor, patient: Batch, target: Batch) -> Tensor:
        return image if target is patient else image + 0.1

    source = world()
    evaluation = evaluate_counterfactuals(brighter, source, shuffled_donors(source), judges=Judges())
    for name, subset in (("composition_error", "1 cycle"), ("reconstruction_ssim", "")):
        assert evaluation.find(name, subset).note.startswith("exact by construction")
    redrawn = evaluation.find("redrawing_error", "1 cycle")
    assert (redrawn.value, redrawn.note) == (pytest.approx(0.05), "")


def test_no_image_is_its_own_donor() -> None:
    source = world(count=7)
    donors = shuffled_donors(source, seed=3).patient_ids
    assert sorted(donors) == sorted(source.patient_ids)
    assert all(donor != patient for donor, patient in zip(donors, source.patient_ids, strict=True))
    with pytest.raises(ValueError, match="at least 2 images; the batch has 1"):
        shuffled_donors(source.select(torch.tensor([0])))


def test_truth_for_some_batches_only_is_an_error() -> None:
    source = world(count=10)
    answers = iter([source.image[:5], None])
    with pytest.raises(ValueError, match="known for 1 of 2 batches"):
        make_counterfactuals(nothing, source, source, exact=lambda *_: next(answers), batch_size=5)


class Shift:
    """``image = noise + 0.3 · edema``: a mechanism with the protocol's own methods."""

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        return value.flatten(1).sum(dim=1)

    def abduct(self, value: Tensor, parents: Values) -> Tensor:
        return value - 0.3 * parents["edema"].reshape(-1, 1, 1, 1)

    def predict(self, noise: Tensor, parents: Values) -> Tensor:
        return noise + 0.3 * parents["edema"].reshape(-1, 1, 1, 1)

    def sample(self, parents: Values, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


def test_editor_abducts_under_the_source_and_predicts_under_the_target() -> None:
    source = world(count=8)
    donor = shuffled_donors(source)
    edit = editor(Shift(), lambda batch: {"edema": batch.findings[:, 0]})
    change = edit(source.image, source, donor) - source.image
    expected = 0.3 * (donor.findings[:, 0] - source.findings[:, 0])
    assert torch.allclose(change.amin(dim=(1, 2, 3)), expected, atol=1e-6)
    assert torch.allclose(change.amax(dim=(1, 2, 3)), expected, atol=1e-6)


class Halves:
    """Upper half is anatomy, lower half pathology: a swap that can be followed by eye."""

    def abduct(self, value: Tensor, parents: Values) -> tuple[Tensor, Tensor]:
        return value[:, :, : SIZE // 2], value[:, :, SIZE // 2 :]

    def with_pathology(self, noise: tuple[Tensor, Tensor], donor: Tensor) -> tuple[Tensor, Tensor]:
        return noise[0], donor[:, :, SIZE // 2 :]

    def predict(self, noise: tuple[Tensor, Tensor], parents: Values) -> Tensor:
        return torch.cat(noise, dim=2)


def test_swap_editor_takes_the_donors_pathology_and_keeps_its_own_when_asked_nothing() -> None:
    source = world(count=8)
    donor = shuffled_donors(source)
    edit = swap_editor(Halves())
    made = edit(source.image, source, donor)
    assert torch.equal(made[:, :, : SIZE // 2], source.image[:, :, : SIZE // 2])
    assert torch.equal(made[:, :, SIZE // 2 :], donor.image[:, :, SIZE // 2 :])
    # Of the image at hand, not of the source's: else repeated cycles would look better than they are.
    assert torch.equal(edit(made, source, source), made)
    assert not math.isclose(float((made - source.image).abs().max()), 0.0)
