from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from counterray.evaluation.auroc import auroc, auroc_metrics, concordance
from counterray.evaluation.intervals import patient_bootstrap, patient_resamples, summarise
from counterray.evaluation.metric import Judge, Metric, as_json


def people(count: int, images: int = 1) -> list[str]:
    return [f"p{row // images}" for row in range(count * images)]


def test_auroc_of_four_points() -> None:
    # Pairs (positive, negative): 0.35 > 0.1, 0.35 < 0.4, 0.8 > 0.1, 0.8 > 0.4: 3 of 4.
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auroc(scores, labels) == 0.75
    assert auroc(-scores, labels) == 0.25


def test_auroc_counts_a_tie_half() -> None:
    assert auroc(np.array([0.5, 0.5, 0.2]), np.array([True, False, False])) == 0.75


def test_auroc_needs_both_classes() -> None:
    assert math.isnan(auroc(np.array([0.1, 0.2]), np.array([True, True])))
    assert math.isnan(auroc(np.array([]), np.array([], dtype=bool)))


def test_resamples_keep_a_patients_images_together() -> None:
    patients = ["b", "a", "b", "c"]
    for rows in patient_resamples(patients, resamples=50, seed=1):
        drawn = [patients[row] for row in rows]
        assert (rows == 0).sum() == (rows == 2).sum()
        assert drawn.count("b") // 2 + drawn.count("a") + drawn.count("c") == 3


def test_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    [interval] = patient_bootstrap(lambda rows: np.atleast_1d(values[rows].mean()), people(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.04)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.04)


def test_clustering_widens_the_interval_by_the_design_effect() -> None:
    # Nine equal images of a patient hold no more information than one: the width must not shrink.
    per_patient = np.random.default_rng(0).normal(size=100)
    values = per_patient.repeat(9)
    alone = summarise("x", per_patient, patients=people(100), direction="none")
    clustered = summarise("x", values, patients=people(100, images=9), direction="none")
    naive = summarise("x", values, patients=people(900), direction="none")
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(3.0, rel=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    hits = 0
    for seed in range(100):
        metric = summarise("x", random.normal(size=60), patients=people(60), direction="none", seed=seed)
        hits += metric.low <= 0.0 <= metric.high
    assert 88 <= hits <= 99


def test_summary_leaves_out_and_counts_missing_values() -> None:
    metric = summarise("x", torch.tensor([1.0, math.nan, 3.0]), patients=["a", "b", "c"], direction="lower")
    assert (metric.value, metric.n) == (2.0, 2)
    assert "1 of 3 images have no value" in metric.note


def test_summary_of_nothing_says_why() -> None:
    metric = summarise("x", torch.tensor([]), patients=[], direction="lower")
    assert math.isnan(metric.value)
    assert metric.note == "no image"


def test_summary_of_infinite_values_stays_infinite() -> None:
    metric = summarise("psnr", torch.full((4,), torch.inf), patients=people(4), direction="higher")
    assert metric.value == metric.low == metric.high == math.inf
    assert metric.as_json()["value"] is None


def test_one_patient_has_no_interval() -> None:
    metric = summarise("x", torch.tensor([1.0, 2.0]), patients=["a", "a"], direction="none")
    assert metric.value == 1.5
    assert math.isnan(metric.low)


def test_values_and_patients_must_agree() -> None:
    with pytest.raises(ValueError, match="3 values but 2 patients"):
        summarise("x", torch.zeros(3), patients=["a", "b"], direction="none")


def test_macro_auroc_takes_findings_with_enough_positives_and_names_the_others() -> None:
    labels = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]]).float()
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.2], [0.5, 0.3], [0.1, 0.4]])
    macro, edema, rare = auroc_metrics(
        "auroc",
        scores,
        labels,
        torch.ones(4, 2, dtype=torch.bool),
        outputs=["edema", "rare_thing"],
        patients=people(4),
        judge="c:1",
        minimum_positives=2,
    )
    assert (edema.value, rare.value, macro.value) == (0.75, 0.0, 0.75)
    assert edema.note == "2 positives; too few for an interval"
    assert math.isnan(edema.low)
    assert math.isnan(edema.high)
    assert "1 of 2" in macro.note
    assert "rare thing" in macro.note


def test_auroc_ignores_unknown_labels_and_says_where_there_is_no_positive() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    _, known, none = auroc_metrics(
        "auroc",
        torch.tensor([[0.8, 0.1], [0.2, 0.1], [0.0, 0.1]]),
        labels,
        mask,
        outputs=["a", "b"],
        patients=people(3),
        judge=None,
    )
    assert (known.value, known.n) == (1.0, 2)
    assert math.isnan(none.value)
    assert none.note == "undefined: 0 positives, 3 negatives"


def test_auroc_refuses_scores_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="1 scores of c:1 are not finite"):
        auroc_metrics(
            "auroc",
            torch.tensor([[math.nan], [0.0]]),
            torch.tensor([[1.0], [0.0]]),
            torch.ones(2, 1, dtype=torch.bool),
            outputs=["a"],
            patients=people(2),
            judge="c:1",
        )


def test_metric_key_and_duplicates() -> None:
    one = Metric(name="auroc", subset="edema", value=0.5, n=3, direction="higher")
    assert one.key == "auroc[edema]"
    assert as_json([one])["auroc[edema]"]["low"] is None
    with pytest.raises(ValueError, match=r"auroc\[edema\]"):
        as_json([one, one])


def test_judge_scores_in_pieces_and_names_what_it_lacks() -> None:
    sizes: list[int] = []

    def predict(image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(image))
        return image.flatten(1).mean(dim=1, keepdim=True)

    judge = Judge(name="c", checksum="0123456789", predict=predict, outputs=("edema",))
    image = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    assert torch.equal(judge.scores(image, batch_size=2), torch.linspace(-1, 1, 5)[:, None])
    assert sizes == [2, 2, 1]
    assert judge.label == "c:01234567"
    with pytest.raises(ValueError, match=r"no output fracture\. It has: edema"):
        judge.columns(("fracture",))


def test_concordance_by_hand():
    """Of 30, 40, 50 and 50 years five pairs differ: three in order, one not, one tied in score."""
    values = np.array([30.0, 40.0, 50.0, 50.0])
    assert concordance(np.array([2.0, 1.0, 2.0, 3.0]), values) == pytest.approx(3.5 / 5)
    assert concordance(values, values) == 1
    assert concordance(-values, values) == pytest.approx(0)
    assert concordance(np.ones(4), values) == 0.5
    assert np.isnan(concordance(values, np.ones(4)))


def test_concordance_with_two_values_is_the_auroc():
    random = np.random.default_rng(0)
    for ties in (False, True):
        scores = random.integers(0, 5, 60).astype(float) if ties else random.random(60)
        labels = random.random(60) < 0.4
        assert concordance(scores, labels.astype(float)) == pytest.approx(auroc(scores, labels))
