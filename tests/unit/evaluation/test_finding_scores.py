from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.finding_scores import f1_metrics, f1_thresholds
from counterray.evaluation.metric import Metric


def read(batch: Batch) -> Tensor:
    """A judge that takes brightness for the first finding and darkness for the second."""
    level = (batch.image.flatten(1).mean(dim=1, keepdim=True) + 1) / 2
    return torch.cat([level, 1 - level], dim=1)[:, : len(batch.finding_names)]


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


def f1(asked: Batch, validation: Batch, *, minimum_positives: int = 1) -> dict[str, Metric]:
    cuts = f1_thresholds(read(validation), validation)
    metrics = f1_metrics("f1", read(asked), asked, cuts=cuts, judge="j", minimum_positives=minimum_positives)
    return {metric.key: metric for metric in metrics}


def test_the_threshold_comes_from_real_images() -> None:
    validation = study([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1])  # the cut is 0.6
    asked = study([0.1, 0.3, 0.5, 0.7], [0, 0, 1, 1])  # which calls only the last
    metrics = f1(asked, validation)
    edema = metrics["f1[edema]"]
    assert edema.value == pytest.approx(2 / 3)
    assert edema.note == "2 positives; threshold 0.6 from real validation images"
    assert (edema.n, edema.judge, edema.direction) == (4, "j", "higher")
    assert metrics["f1_macro"].value == edema.value


def test_labels_that_are_not_known_do_not_count() -> None:
    validation = study([0.1, 0.6], [0, 1])
    asked = study([0.1, 0.9, 0.9], [0, 1, 0])
    masked = Batch(**{**vars(asked), "finding_mask": torch.tensor([[True], [True], [False]])})
    edema = f1(masked, validation)["f1[edema]"]
    assert (edema.value, edema.n) == (1.0, 2)


def test_macro_takes_findings_with_enough_images_and_a_threshold() -> None:
    names = ("edema", "fracture")
    validation, asked = study([0.1, 0.9], [0, 1], names=names), study([0.2, 0.9], [0, 1], names=names)
    known = validation.finding_mask.clone()
    known[1, 1] = False  # no positive of fracture to choose a threshold on
    validation = Batch(**{**vars(validation), "finding_mask": known})
    metrics = f1(asked, validation)
    assert math.isnan(metrics["f1[fracture]"].value)
    assert "no positive among the validation images" in metrics["f1[fracture]"].note
    assert metrics["f1_macro"].value == 1.0
    assert metrics["f1_macro"].note == "1 of 2; too few images or no threshold: fracture"


def test_no_finding_is_in_no_average_as_it_is_the_absence_of_the_others() -> None:
    names = ("edema", "no_finding")
    validation = study([0.1, 0.9], [0, 1], names=names)
    metrics = f1(study([0.2, 0.9], [0, 1], names=names), validation)
    # Darkness is read as no finding, so that both are called wrongly: precision and recall are 1 / 2 and 1.
    assert metrics["f1[no_finding]"].value == pytest.approx(2 / 3)
    assert (metrics["f1_macro"].value, metrics["f1[edema]"].value) == (1.0, 1.0)
    assert metrics["f1_macro"].note == "1 of 2; no finding is the absence of the others"


def test_intervals_hold_the_values() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(200) < 0.4).astype(int)
    levels = (0.3 * random.random(200) + 0.2 * labels).tolist()
    images = study(levels, labels.tolist())
    metrics = f1(images, images, minimum_positives=50)
    assert list(metrics) == ["f1_macro", "f1[edema]"]
    assert all(m.low < m.value < m.high for m in metrics.values())
