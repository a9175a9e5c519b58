from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.judge import (
    category_metrics,
    classifier_metrics,
    dice,
    identity_metrics,
    regressor_metrics,
    segmentor_metrics,
)
from counterray.evaluation.metric import Judge


def study(**changes: object) -> Batch:
    image = torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    fields: dict[str, object] = {
        "image": image,
        "attributes": {
            "sex": torch.tensor([0.0, 1.0, 1.0, math.nan]),
            "age": torch.tensor([30.0, 40, 50, 60]),
        },
        "findings": torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
        "finding_mask": torch.ones(4, 2, dtype=torch.bool),
        "finding_names": ("edema", "fracture"),
        "patient_ids": ("a", "a", "b", "c"),
    }
    return Batch(**{**fields, **changes})


def brightness(image: Tensor) -> Tensor:
    return image.flatten(1).mean(dim=1, keepdim=True)


def judge(predict: object = brightness, outputs: tuple[str, ...] = ()) -> Judge:
    return Judge(name="judge", checksum="123", predict=predict, outputs=outputs)


def test_classifier_is_scored_on_the_findings_it_shares_with_the_data() -> None:
    reads = judge(lambda image: torch.cat([-brightness(image), brightness(image)], dim=1), ("x", "edema"))
    macro, edema = classifier_metrics(reads, study(), minimum_positives=1)
    assert (edema.key, edema.value, macro.value) == ("auroc[edema]", 1.0, 1.0)


def test_no_finding_is_in_no_average_as_it_is_the_absence_of_the_others() -> None:
    names = ("edema", "no_finding")
    reads = judge(lambda image: torch.cat([brightness(image), -brightness(image)], dim=1), names)
    macro, edema, nothing = classifier_metrics(reads, study(finding_names=names), minimum_positives=1)
    assert (edema.value, nothing.value) == (1.0, 0.25)  # 1 of 4 pairs is in order
    assert macro.value == 1.0
    assert macro.note == "1 of 2; no finding is the absence of the others"
    few, *_ = classifier_metrics(reads, study(finding_names=names), minimum_positives=3)
    assert math.isnan(few.value)
    assert few.note == (
        "0 of 2; fewer than 3 positives or negatives: edema; no finding is the absence of the others"
    )


def test_classifier_without_a_shared_finding() -> None:
    with pytest.raises(ValueError, match="names pneumonia; the data have edema, fracture"):
        classifier_metrics(judge(outputs=("pneumonia",)), study())


def test_categories_skip_the_unknown() -> None:
    reads = judge(lambda image: torch.cat([-brightness(image), brightness(image)], dim=1), ("female", "male"))
    metrics = {m.key: m for m in category_metrics(reads, study(), "sex", minimum_positives=1)}
    assert metrics["auroc_sex[male]"].value == 1.0
    assert metrics["auroc_sex[male]"].n == 3


def test_dice_by_hand() -> None:
    found, truth = torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, 2)
    found[0, 0, 0, :], truth[0, 0, :, 0] = 1.0, 1.0
    truth[1, 0] = math.nan
    values = dice(found, truth)
    # Two pixels each, one in common: 2 · 1 / (2 + 2); two empty masks agree.
    assert values[0].tolist() == [0.5, 1.0]
    assert math.isnan(values[1, 0])


def test_segmentor_leaves_out_images_without_a_mask() -> None:
    masks = torch.zeros(4, 1, 2, 2)
    masks[2:] = 1.0
    masks[0] = math.nan
    reads = judge(lambda image: (image > 0).float(), ("heart", "spine"))
    [heart] = segmentor_metrics(reads, study(masks={"heart": masks}))
    assert (heart.key, heart.value, heart.n) == ("dice[heart]", 1.0, 3)


def test_segmentor_without_masks() -> None:
    with pytest.raises(ValueError, match="segments heart; the data have masks of nothing"):
        segmentor_metrics(judge(outputs=("heart",)), study())


def test_regressor_error_in_the_datas_unit() -> None:
    reads = judge(lambda image: 45 + 10 * brightness(image), ("age",))
    [age] = regressor_metrics(reads, study(), units=["years"])
    # Estimates 35, 41.67, 48.33, 55 of 30, 40, 50, 60.
    assert age.value == pytest.approx((5 + 5 / 3 + 5 / 3 + 5) / 4, abs=1e-5)
    assert (age.unit, age.direction) == ("years", "lower")


def test_regressor_of_what_the_data_lack() -> None:
    with pytest.raises(ValueError, match="estimates weight, which the data do not have"):
        regressor_metrics(judge(outputs=("weight",)), study())


def test_identity_asks_only_patients_with_two_images() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 0.5]])
    [top1] = identity_metrics(judge(lambda image: features), study())
    assert (top1.value, top1.n) == (1.0, 2)


def test_identity_without_repeated_patients_is_missing_with_the_reason() -> None:
    [top1] = identity_metrics(judge(), study(patient_ids=("a", "b", "c", "d")))
    assert math.isnan(top1.value)
    assert top1.note == "no patient of this split has two images"
