from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.effectiveness_ratio import effectiveness_ratio
from counterray.evaluation.metric import Metric

NAMES = ("edema", "fracture", "mass")
PREVALENCE = {"edema": 0.2, "fracture": 0.04, "mass": 0.01}


def study(labels: Tensor, patients: Sequence[str] | None = None) -> Batch:
    return Batch(
        image=torch.zeros(len(labels), 1, 1, 1),
        attributes={},
        findings=labels.float(),
        finding_mask=torch.ones_like(labels, dtype=torch.bool),
        finding_names=NAMES[: labels.shape[1]],
        patient_ids=tuple(patients or (f"p{row}" for row in range(len(labels)))),
    )


def measure(
    scores: Tensor, asked: Batch, real_scores: Tensor, real: Batch, **settings: object
) -> dict[str, Metric]:
    options = {"prevalence": PREVALENCE, "judge": "j", "minimum_positives": 1} | settings
    return {m.key: m for m in effectiveness_ratio(scores, asked, real_scores, real, **options)}


def one_finding() -> tuple[Tensor, Batch, Tensor, Batch]:
    # On counterfactuals 3 of 4 pairs are in order, on real images all: 0.75.
    asked, real = study(torch.tensor([[0], [0], [1], [1]])), study(torch.tensor([[0], [1], [0], [1]]))
    return torch.tensor([[0.1], [0.5], [0.4], [0.9]]), asked, torch.tensor([[0.1], [0.8], [0.2], [0.7]]), real


def test_ratio_by_hand() -> None:
    metrics = measure(*one_finding())
    assert metrics["effectiveness_ratio[edema]"].value == pytest.approx(0.75)
    assert metrics["effectiveness_ratio_macro"].value == pytest.approx(0.75)


def test_an_edit_that_matches_real_images_has_ratio_one() -> None:
    _, _, scores, real = one_finding()
    assert measure(scores, real, scores, real)["effectiveness_ratio[edema]"].value == 1.0


def test_macro_averages_split_at_a_prevalence_of_five_percent() -> None:
    labels = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]])
    perfect = torch.tensor([0.1, 0.2, 0.8, 0.9])[:, None].expand(-1, 3)
    scores = perfect.clone()
    scores[:, 1] = torch.tensor([0.1, 0.5, 0.4, 0.9])  # 0.75
    scores[:, 2] = torch.tensor([0.5, 0.5, 0.5, 0.5])  # 0.5
    metrics = measure(scores, study(labels), perfect, study(labels))
    assert metrics["effectiveness_ratio_macro"].value == pytest.approx(0.75)
    assert metrics["effectiveness_ratio_macro[common]"].value == 1.0
    assert metrics["effectiveness_ratio_macro[rare]"].value == pytest.approx(0.625)
    assert metrics["effectiveness_ratio_macro[rare]"].note == "mean over fracture, mass"
    assert (
        metrics["effectiveness_ratio[mass]"].note
        == "2 asked for, 2 real; prevalence 1 %; the rarest; too few for an interval"
    )
    assert (
        metrics["effectiveness_ratio[fracture]"].note
        == "2 asked for, 2 real; prevalence 4 %; too few for an interval"
    )


def test_findings_with_few_images_are_left_out_of_the_averages() -> None:
    metrics = measure(*one_finding(), minimum_positives=3)
    assert math.isnan(metrics["effectiveness_ratio_macro"].value)
    assert metrics["effectiveness_ratio_macro"].note == "no finding has enough positives and negatives"
    assert metrics["effectiveness_ratio[edema]"].value == pytest.approx(0.75)


def noisy(n: int, *, seed: int) -> tuple[Tensor, Batch]:
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, 1, generator=random) < 0.4).long()
    return torch.randn(n, 1, generator=random) + 1.0 * labels, study(labels)


def test_what_a_patient_s_images_share_cancels() -> None:
    scores, real = noisy(150, seed=0)
    paired = measure(scores, real, scores, real)["effectiveness_ratio[edema]"]
    strangers = study(real.findings, [f"q{row}" for row in range(150)])
    apart = measure(scores, strangers, scores, real)["effectiveness_ratio[edema]"]
    assert (paired.low, paired.high) == (1.0, 1.0)
    assert apart.low < 0.95 < 1.05 < apart.high


def test_several_edits_of_a_patient() -> None:
    scores, real = noisy(100, seed=0)
    edits, asked = noisy(300, seed=1)
    asked = study(asked.findings, [f"p{row % 100}" for row in range(300)])
    metric = measure(edits, asked, scores, real)["effectiveness_ratio[edema]"]
    assert metric.n == 300
    assert metric.low < metric.value < metric.high
    assert (metric.direction, metric.judge, metric.unit) == ("higher", "j", "of the real AUROC")


def test_labels_that_are_not_known_do_not_count() -> None:
    scores, asked, real_scores, real = one_finding()
    known = Batch(**{**vars(asked), "finding_mask": torch.tensor([[True], [False], [True], [True]])})
    assert measure(scores, known, real_scores, real)["effectiveness_ratio[edema]"].value == 1.0


def test_bad_input() -> None:
    scores, asked, real_scores, real = one_finding()
    with pytest.raises(ValueError, match="no prevalence between 0 and 1 is given for edema"):
        measure(scores, asked, real_scores, real, prevalence={"edema": 20.0})
    with pytest.raises(ValueError, match=r"scores on real images have shape \[3, 1\]; \[4, 1\] is needed"):
        measure(scores, asked, real_scores[:3], real)
    with pytest.raises(ValueError, match="1 scores on counterfactuals are not finite"):
        measure(scores.masked_fill(scores > 0.8, math.nan), asked, real_scores, real)
    other = Batch(**{**vars(real), "finding_names": ("mass",)})
    with pytest.raises(ValueError, match=r"asked for \(edema\) are not those of the real images \(mass\)"):
        measure(scores, asked, real_scores, other)


def test_real_images_that_the_judge_gets_all_wrong_allow_no_ratio() -> None:
    scores, asked, _, real = one_finding()
    wrong = torch.tensor([[0.8], [0.1], [0.7], [0.2]])
    assert math.isnan(measure(scores, asked, wrong, real)["effectiveness_ratio[edema]"].value)


def test_no_finding_is_in_no_average_as_it_is_the_absence_of_the_others() -> None:
    labels = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])
    names = ("edema", "no_finding")
    asked = replace(study(labels), finding_names=names)
    scores = torch.tensor([[0.1, 0.5], [0.5, 0.5], [0.4, 0.5], [0.9, 0.5]])
    prevalence = {"edema": 0.2, "no_finding": 0.5}
    metrics = measure(scores, asked, labels.float(), asked, prevalence=prevalence)
    assert metrics["effectiveness_ratio[no_finding]"].value == 0.5
    assert (
        metrics["effectiveness_ratio_macro"].value
        == metrics["effectiveness_ratio_macro[common]"].value
        == 0.75
    )
    assert metrics["effectiveness_ratio_macro"].note == "mean over edema"
