from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.areas import area_deviation, areas
from counterray.evaluation.composition import composition
from counterray.evaluation.counterfactuals import Counterfactuals, patients
from counterray.evaluation.effectiveness import effectiveness
from counterray.evaluation.ground_truth import ground_truth_metrics, nearest_with_findings
from counterray.evaluation.identity import reidentification_rank
from counterray.evaluation.metric import Judge
from counterray.evaluation.off_target import off_target_change, off_target_metrics
from counterray.evaluation.pixel_error import mean_absolute_error
from counterray.evaluation.psnr import psnr
from counterray.evaluation.reversibility import reversibility
from counterray.evaluation.ssim import ssim


def grey(*values: float, size: int = 2) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, size, size).clone()


def batch(image: Tensor, findings: list[list[float]] | None = None, names: tuple[str, ...] = ("a",)) -> Batch:
    labels = torch.tensor(findings or [[0.0]] * len(image))
    return Batch(
        image=image,
        attributes={},
        findings=labels,
        finding_mask=torch.ones_like(labels, dtype=torch.bool),
        finding_names=names,
        patient_ids=tuple(f"p{row}" for row in range(len(image))),
    )


def test_mean_absolute_error_is_a_share_of_the_grey_range() -> None:
    assert mean_absolute_error(grey(-1.0, 0.5), grey(1.0, 0.3)).tolist() == pytest.approx([1.0, 0.1])


def test_mean_absolute_error_in_a_region() -> None:
    image, reference = torch.zeros(2, 1, 1, 4), torch.tensor([0.0, 0.4, 0.8, 0.0]).expand(2, 1, 1, 4)
    region = torch.tensor([[False, True, True, False], [False] * 4]).reshape(2, 1, 1, 4)
    inside, empty = mean_absolute_error(image, reference, region=region).tolist()
    assert inside == pytest.approx(0.3)
    assert math.isnan(empty)


def test_mean_absolute_error_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\) cannot be compared with \(1, 1, 3, 3\)"):
        mean_absolute_error(grey(0.0), grey(0.0, size=3))


def test_ssim_of_constant_images_is_its_brightness_term() -> None:
    # Without variance only (2ab + c1) / (a² + b² + c1) is left, with c1 = (0.01 · 2)².
    value = ssim(grey(0.2, size=16), grey(0.6, size=16))
    assert value.item() == pytest.approx((2 * 0.2 * 0.6 + 0.0004) / (0.04 + 0.36 + 0.0004), abs=1e-4)


def test_ssim_of_equal_images_is_one() -> None:
    image = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(image, image).tolist() == pytest.approx([1.0] * 3)


def test_psnr_of_a_known_error() -> None:
    # Error 0.2 of a range of 2: 20 log10(2 / 0.2) = 20 dB; 0.02: 40 dB.
    assert psnr(grey(0.2, 0.02), grey(0.0, 0.0)).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(grey(0.3), grey(0.3)).tolist() == [math.inf]


def test_area_deviation_by_hand() -> None:
    found, truth = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    found[0, 0, :, :3], truth[0, 0, :, :2] = 0.9, 0.8
    found[0, 1, 0, :2], truth[0, 1, 0, :] = 0.6, 0.6
    found[0, 2, 0, 0] = 1.0
    assert areas(found).tolist() == [[12, 2, 1]]
    lung, heart, absent = area_deviation(found, truth)[0].tolist()
    assert (lung, heart) == (0.5, 0.5)
    assert math.isnan(absent)


def test_off_target_change_counts_kept_findings_only() -> None:
    before = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.2, 0.2]])
    after = torch.tensor([[0.9, 0.6, 0.6], [0.9, 0.9, 0.9]])
    kept = torch.tensor([[False, True, True], [False, False, False]])
    first, second = off_target_change(before, after, kept).tolist()
    assert first == pytest.approx(0.2)
    assert math.isnan(second)


def test_off_target_auroc_is_the_change_over_images_that_should_keep_the_finding() -> None:
    """Of five images the edit turns the finding of the first on; of the others two show it."""
    source = batch(grey(*[0.0] * 5), [[0.0], [0.0], [0.0], [1.0], [1.0]])
    donor = batch(source.image, [[1.0], [0.0], [0.0], [1.0], [1.0]])
    made = Counterfactuals(source=source, donor=donor, image=source.image, reconstruction=source.image)
    judge = Judge(name="c", checksum="1", predict=lambda image: image, outputs=("a",))
    before = torch.tensor([[0.99], [0.2], [0.4], [0.3], [0.8]])  # 3 of 4 pairs in order
    after = torch.tensor([[0.0], [0.2], [0.4], [0.3], [0.1]])  # 1 of 4
    metrics = {m.key: m for m in off_target_metrics(made, judge, before=before, after=after)}
    blurred = metrics["off_target_auroc[a]"]
    assert blurred.value == pytest.approx(1 / 4 - 3 / 4)
    assert (blurred.n, blurred.judge, blurred.direction) == (4, "c:1", "higher")
    assert blurred.note == "2 of 4 images that should keep it show it"
    assert math.isnan(blurred.low), "two positives are too few for an interval"
    same = {m.key: m.value for m in off_target_metrics(made, judge, before=before, after=before)}
    assert same["off_target_auroc[a]"] == 0.0


def test_rank_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    query = torch.tensor([[2.0, 0.1], [0.0, 3.0]])
    ranks = reidentification_rank(query, gallery, patients=["a", "b"], gallery_patients=["a", "b", "c"])
    assert ranks.tolist() == [1, 2]


def test_rank_takes_the_best_of_a_patients_images() -> None:
    gallery = torch.tensor([[0.0, 1.0], [0.9, 0.1], [1.0, 0.0]])
    ranks = reidentification_rank(
        torch.tensor([[1.0, 0.0]]), gallery, patients=["a"], gallery_patients=["a", "b", "a"]
    )
    assert ranks.tolist() == [1]


def test_an_encoder_without_information_is_last_not_first() -> None:
    ranks = reidentification_rank(
        torch.ones(1, 3), torch.ones(4, 3), patients=["a"], gallery_patients=["a", "b", "c", "d"]
    )
    assert ranks.tolist() == [4]


def test_rank_refuses_a_patient_without_gallery_image() -> None:
    with pytest.raises(ValueError, match="1 of 1 patients have no gallery image"):
        reidentification_rank(torch.ones(1, 2), torch.ones(1, 2), patients=["x"], gallery_patients=["y"])


def fading(image: Tensor, source: Batch, target: Batch) -> Tensor:
    """Halves the image each time: an editor whose loss per round is known."""
    return image / 2


def test_composition_error_by_hand() -> None:
    errors = composition(fading, batch(grey(0.8, -0.4)), cycles=(1, 3))
    # |0.8 - 0.4| / 2, |0.8 - 0.1| / 2 and half of each for the second image.
    assert errors[1].tolist() == pytest.approx([0.2, 0.1])
    assert errors[3].tolist() == pytest.approx([0.35, 0.175])
    assert sorted(errors) == [1, 3]


def test_reversibility_error_by_hand() -> None:
    source = batch(grey(0.8))
    errors = reversibility(fading, source, batch(grey(0.0)), cycles=(1, 2))
    # One round halves twice, two rounds four times: |0.8 - 0.2| / 2 and |0.8 - 0.05| / 2.
    assert errors[1].tolist() == pytest.approx([0.3])
    assert errors[2].tolist() == pytest.approx([0.375])


def test_reversibility_undoes_with_the_parents_exchanged() -> None:
    seen: list[tuple[bool, bool]] = []
    source, donor = batch(grey(0.1)), batch(grey(0.7))

    def edit(image: Tensor, now: Batch, then: Batch) -> Tensor:
        seen.append((now is source, then is source))
        return image

    assert reversibility(edit, source, donor, cycles=(1,))[1].tolist() == [0.0]
    assert seen == [(True, False), (False, True)]


def swapped(image: Tensor, exact: Tensor | None = None) -> Counterfactuals:
    source = batch(grey(0.0, 0.0), [[0.0, 1.0], [0.0, 0.0]], names=("a", "b"))
    donor = batch(grey(0.5, 0.5), [[1.0, 1.0], [1.0, 1.0]], names=("a", "b"))
    return Counterfactuals(source=source, donor=donor, image=image, reconstruction=source.image, exact=exact)


def test_changed_findings() -> None:
    made = swapped(grey(0.0, 0.0))
    assert made.changed.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (grey(0.0), r"image has shape \(1, 1, 2, 2\)"),
        (grey(0.0, math.nan), "1 of 2 images in image are not finite"),
    ],
)
def test_counterfactuals_refuse_bad_images(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swapped(image)


def test_a_batch_without_patients_is_refused() -> None:
    nameless = Batch(
        image=grey(0.0), attributes={}, findings=torch.zeros(1, 1), finding_mask=torch.ones(1, 1)
    )
    with pytest.raises(ValueError, match="1 images names 0 patients"):
        patients(nameless)


def test_nearest_prefers_matching_findings_to_nearer_pixels() -> None:
    pool = batch(grey(0.0, 0.3, 0.2), [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], names=("a", "b"))
    source = batch(grey(0.0, 0.0), names=("a",))
    target = batch(grey(0.9, 0.9), [[1.0, 0.0], [1.0, 1.0]], names=("a", "b"))
    # No pool image has both findings: the nearest with one mismatch is taken.
    assert nearest_with_findings(source, target, pool).tolist() == [2, 2]


def test_nearest_needs_a_pool() -> None:
    one = batch(grey(0.0))
    with pytest.raises(ValueError, match="pool of training images is empty"):
        nearest_with_findings(one, one, one.select(torch.tensor([], dtype=torch.long)))


def test_ground_truth_error_against_its_baselines() -> None:
    exact = grey(0.4, 0.4)
    pool = batch(grey(0.2), [[1.0, 1.0]], names=("a", "b"))
    values = {m.key: m.value for m in ground_truth_metrics(swapped(grey(0.3, 0.3)), exact, pool=pool)}
    assert values["ground_truth_error"] == pytest.approx(0.05)
    assert values["ground_truth_error[no edit]"] == pytest.approx(0.2)
    assert values["ground_truth_error[nearest training image]"] == pytest.approx(0.1)
    assert values["ground_truth_error_where_changed"] == pytest.approx(0.05)


def test_ground_truth_error_where_changed_ignores_the_rest() -> None:
    exact = torch.zeros(2, 1, 2, 2)
    exact[:, :, 0, 0] = 0.8
    metrics = {m.key: m.value for m in ground_truth_metrics(swapped(grey(0.0, 0.0)), exact)}
    assert metrics["ground_truth_error"] == pytest.approx(0.1)
    assert metrics["ground_truth_error_where_changed"] == pytest.approx(0.4)


def test_effectiveness_of_a_perfect_and_of_no_edit() -> None:
    source = batch(grey(0.0, 0.0, 0.0, 0.0), [[0.0], [1.0], [0.0], [1.0]])
    donor = batch(grey(0.0, 0.0, 0.0, 0.0), [[1.0], [1.0], [0.0], [0.0]])
    made = Counterfactuals(source=source, donor=donor, image=source.image, reconstruction=source.image)
    judge = Judge(name="c", checksum="1", predict=lambda image: image, outputs=("a",))
    metrics = effectiveness(made, judge, before=source.findings, after=donor.findings, minimum_positives=1)
    values = {metric.key: metric.value for metric in metrics}
    assert values["effectiveness_auroc[a]"] == 1.0
    assert values["no_edit_auroc[a]"] == 0.5
    assert values["real_auroc[a]"] == 1.0
    directions = {metric.name: metric.direction for metric in metrics}
    assert directions["effectiveness_auroc_macro"] == "higher"
    assert directions["no_edit_auroc_macro"] == "none"
