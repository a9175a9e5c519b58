from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.finding_scores import finding_score_metrics
from counterray.evaluation.metric import Judge, Metric


def brightness(image: Tensor) -> Tensor:
    level = (image.flatten(1).mean(dim=1, keepdim=True) + 1) / 2
    return torch.cat([level, 1 - level], dim=1)


JUDGE = Judge(name="reader", checksum="0123456789", predict=brightness, outputs=("edema", "fracture"))


def study(levels: list[float], labels: list[int], *, names: tuple[str, ...] = ("edema",)) -> Batch:
    """Grey images of these levels in [0, 1]."""
    findings = torch.tensor(labels).float()[:, None].expand(-1, len(names))
    return Batch(
        image=(2 * torch.tensor(levels) - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        attributes={},
        findings=findings,
        finding_mask=torch.ones_like(findings, dtype=torch.bool),
        finding_names=names,
        patient_ids=tuple(f"p{row}" for row in range(len(levels))),
    )


def by_key(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


def test_the_threshold_comes_from_real_images() -> None:
    validation = study([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1])  # the cut is 0.6
    asked = study([0.1, 0.3, 0.5, 0.7], [0, 0, 1, 1])  # which calls only the last
    metrics = by_key(
        finding_score_metrics(asked.image, asked, JUDGE, validation=validation, minimum_positives=1)
    )
    assert metrics["generated_auroc[edema]"].value == 1.0
    f1 = metrics["generated_f1[edema]"]
    assert f1.value == pytest.approx(2 / 3)
    assert f1.note == "2 positives; threshold 0.6 from real validation images"
    assert (f1.n, f1.judge, f1.direction) == (4, "reader:01234567", "higher")
    assert metrics["generated_f1_macro"].value == f1.value


def test_labels_that_are_not_known_do_not_count() -> None:
    validation = study([0.1, 0.6], [0, 1])
    asked = study([0.1, 0.9, 0.9], [0, 1, 0])
    masked = Batch(**{**vars(asked), "finding_mask": torch.tensor([[True], [True], [False]])})
    metrics = by_key(
        finding_score_metrics(masked.image, masked, JUDGE, validation=validation, minimum_positives=1)
    )
    assert metrics["generated_f1[edema]"].value == 1.0
    assert metrics["generated_f1[edema]"].n == 2


def test_macro_takes_findings_with_enough_images_and_a_threshold() -> None:
    names = ("edema", "fracture")
    validation, asked = study([0.1, 0.9], [0, 1], names=names), study([0.2, 0.9], [0, 1], names=names)
    known = validation.finding_mask.clone()
    known[1, 1] = False  # no positive of fracture to choose a threshold on
    validation = Batch(**{**vars(validation), "finding_mask": known})
    metrics = by_key(
        finding_score_metrics(asked.image, asked, JUDGE, validation=validation, minimum_positives=1)
    )
    assert math.isnan(metrics["generated_f1[fracture]"].value)
    assert "no positive among the validation images" in metrics["generated_f1[fracture]"].note
    assert metrics["generated_f1_macro"].value == 1.0
    assert metrics["generated_f1_macro"].note == "1 of 2; too few images or no threshold: fracture"
    assert metrics["generated_auroc[fracture]"].value == 0.0


def test_intervals_and_names_of_real_images() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(200) < 0.4).astype(int)
    levels = (0.3 * random.random(200) + 0.2 * labels).tolist()
    images = study(levels, labels.tolist())
    metrics = by_key(finding_score_metrics(images.image, images, JUDGE, validation=images, prefix="real"))
    assert list(metrics) == ["real_auroc_macro", "real_auroc[edema]", "real_f1_macro", "real_f1[edema]"]
    assert all(m.low < m.value < m.high for m in metrics.values())


def test_bad_input() -> None:
    images = study([0.1, 0.9], [0, 1])
    with pytest.raises(ValueError, match="1 images but 2 rows of findings"):
        finding_score_metrics(images.image[:1], images, JUDGE, validation=images)
    with pytest.raises(ValueError, match=r"asked for \(edema\) are not those of the validation images \(fr"):
        finding_score_metrics(images.image, images, JUDGE, validation=study([0.1], [0], names=("fracture",)))
    unknown = study([0.1, 0.9], [0, 1], names=("mass",))
    with pytest.raises(ValueError, match="no output mass"):
        finding_score_metrics(unknown.image, unknown, JUDGE, validation=unknown)
