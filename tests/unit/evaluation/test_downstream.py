from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterray.config import ConfigError, validate
from counterray.data.study import Batch
from counterray.evaluation.downstream import MEASURES, DownstreamConfig, DownstreamUtility, downstream_utility
from tests import predictor_toys

SMALL = DownstreamConfig(width=4, steps=30, batch_size=16, learning_rate=5e-3)


def part(name: str, count: int, *, seed: int) -> Batch:
    """Toy radiographs of patients of this part alone."""
    drawn = predictor_toys.batch(count, seed)
    return replace(drawn, patient_ids=tuple(f"{name}-{patient}" for patient in drawn.patient_ids))


def positives(batch: Batch, finding: int) -> Tensor:
    return torch.nonzero(batch.findings[:, finding] > 0.5).flatten()


@pytest.fixture(scope="module")
def outcome() -> DownstreamUtility:
    """Real training images almost without edema; synthetic ones that have it."""
    many = part("train", 160, seed=1)
    scarce = many.select(
        torch.cat([torch.nonzero(many.findings[:, 0] < 0.5).flatten(), positives(many, 0)[:2]])
    )
    synthetic = part("train", 160, seed=1).select(positives(many, 0))
    return downstream_utility(
        scarce,
        synthetic,
        part("validation", 80, seed=2),
        part("test", 100, seed=3),
        findings=["edema", "fracture"],
        seeds=(0, 1),
        config=SMALL,
    )


def test_images_of_a_missing_finding_help(outcome: DownstreamUtility) -> None:
    metrics = {metric.key: metric for metric in outcome.metrics}
    alone, joined = (metrics[f"downstream_auroc[edema, {arm}]"] for arm in ("real", "with synthetic"))
    gain = metrics["downstream_auroc_gain[edema]"]
    assert joined.value > 0.8
    assert gain.value == pytest.approx(joined.value - alone.value)
    assert 0.05 < gain.low < gain.value < gain.high
    assert (gain.direction, alone.direction, gain.judge) == ("higher", "none", "resnet-18, width 4")
    assert gain.n == 100


def test_every_measure_of_every_arm_is_there(outcome: DownstreamUtility) -> None:
    keys = {metric.key for metric in outcome.metrics}
    assert len(keys) == len(outcome.metrics) == len(MEASURES) * 3 * 3
    assert {f"downstream_{measure}[all findings, real]" for measure in MEASURES} <= keys
    assert {f"downstream_{measure}_gain[fracture]" for measure in MEASURES} <= keys


def test_values_are_means_over_seeds(outcome: DownstreamUtility) -> None:
    metrics = {metric.key: metric for metric in outcome.metrics}
    scores = outcome.scores["with synthetic"]
    assert scores.shape == (2, 2, len(MEASURES))
    assert metrics["downstream_auroc[fracture, with synthetic]"].value == pytest.approx(
        scores[:, 1, 0].mean()
    )
    everything = metrics["downstream_auroc[all findings, with synthetic]"]
    assert everything.value == pytest.approx(scores[:, :, 0].mean())
    deviation = scores[:, 1, 0].std(ddof=1)
    note = metrics["downstream_auroc[fracture, with synthetic]"].note
    assert note == f"mean of 2 seeds, standard deviation {deviation:.3f}"


def test_the_table_has_both_arms_and_paired_differences(outcome: DownstreamUtility) -> None:
    table = outcome.table()
    assert table.columns[:3] == ["Finding", "Training images", "AUROC"]
    assert [row[:2] for row in table.rows[:3]] == [
        ["edema", "real"],
        ["edema", "with synthetic"],
        ["edema", "difference"],
    ]
    gains = outcome.scores["with synthetic"][:, 0, 0] - outcome.scores["real"][:, 0, 0]
    assert table.rows[2][2] == f"{gains.mean():.3f} ± {gains.std(ddof=1):.3f}"


def tiny(**changes: object) -> DownstreamUtility:
    settings: dict[str, object] = {
        "real": part("train", 12, seed=1),
        "synthetic": part("train", 8, seed=2),
        "validation": part("validation", 12, seed=3),
        "test": part("test", 12, seed=4),
        "findings": ["edema"],
        "seeds": (0,),
        "config": DownstreamConfig(width=1, steps=2, batch_size=8),
    }
    return downstream_utility(**settings | changes)


def test_a_seed_decides_everything_and_the_global_one_nothing() -> None:
    torch.manual_seed(1)
    first, state = tiny(), torch.get_rng_state()
    torch.manual_seed(2)
    second = tiny()
    assert [metric.value for metric in first.metrics[:2]] == [metric.value for metric in second.metrics[:2]]
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_that_are_not_known_do_not_count() -> None:
    test = part("test", 12, seed=4)
    known = test.finding_mask.clone()
    known[:5] = False
    metrics = {metric.key: metric for metric in tiny(test=replace(test, finding_mask=known)).metrics}
    assert metrics["downstream_auroc[edema, real]"].n == 7


def test_a_finding_without_threshold_has_an_auroc_alone() -> None:
    validation = part("validation", 12, seed=3)
    blank = replace(validation, findings=torch.zeros_like(validation.findings))
    metrics = {metric.key: metric for metric in tiny(validation=blank, seeds=(0, 1)).metrics}
    assert math.isfinite(metrics["downstream_auroc[edema, real]"].value)
    f1 = metrics["downstream_f1[edema, real]"]
    assert math.isnan(f1.value)
    assert f1.note.startswith("undefined in a seed")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="patients are in two of training, validation and test"):
        tiny(synthetic=part("test", 8, seed=4))
    with pytest.raises(ValueError, match="patients are in two of training, validation and test"):
        tiny(validation=part("train", 12, seed=1))
    with pytest.raises(ValueError, match=r"seeds \[1, 1\] must be one or more different numbers"):
        tiny(seeds=(1, 1))
    with pytest.raises(ValueError, match="no synthetic image"):
        tiny(synthetic=part("train", 8, seed=2).select(torch.empty(0, dtype=torch.long)))
    with pytest.raises(ValueError, match="asks for mass, which the dataset does not have"):
        tiny(findings=["mass"])
    broken = part("train", 12, seed=1)
    with pytest.raises(FloatingPointError, match="not finite at step 0 of seed 0"):
        tiny(real=replace(broken, image=broken.image * torch.nan))
    with pytest.raises(ConfigError, match="batch_size"):
        validate(DownstreamConfig, {"batch_size": 1})
