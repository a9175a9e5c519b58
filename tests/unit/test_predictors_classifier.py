"""The classifier."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterray.models.predictors.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierStage,
    balanced_weight,
    masked_binary_cross_entropy,
)
from counterray.training.loop import train
from tests.predictor_toys import DATA, FINDINGS, batch, batches


def test_masked_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [100.0, math.log(3)]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[True, True], [False, True]])
    # −log ½, −log ¼ and −log ¾; the certain error at [1, 0] is unknown and does not count.
    expected = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert float(masked_binary_cross_entropy(logits, labels, known)) == pytest.approx(expected)


def test_positive_weight_multiplies_positives_only():
    logits, known = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    labels = torch.tensor([[1.0], [0.0]])
    weighted = masked_binary_cross_entropy(logits, labels, known, torch.tensor([3.0]))
    assert float(weighted) == pytest.approx((3 + 1) / 2 * math.log(2))


def test_balanced_weight_counts_known_labels_and_has_limits():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    known = torch.ones(4, 3, dtype=torch.bool)
    known[3, 0] = False
    # 2 negatives to 1 positive; 4 to none, so the limit; 1 to 3, so no less than 1.
    assert balanced_weight(labels, known, 2.5).tolist() == [2.0, 2.5, 1.0]


def test_batch_without_known_labels_costs_nothing_and_moves_nothing():
    stage = ClassifierStage(ClassifierConfig())
    module = stage.build({}, DATA)
    toy = batch(4, 0)
    losses = stage.loss(module, replace(toy, finding_mask=torch.zeros(4, 2, dtype=torch.bool)), 0)
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in module.parameters() if p.grad is not None)


def test_shapes_and_types_also_in_bfloat16():
    module = Classifier(ClassifierConfig(), FINDINGS, 32)
    image = batch(3, 0).image
    for _ in range(2):
        assert module(image).shape == (3, 2)
        assert module(image).dtype == module.embedding(image).dtype == torch.float32
        assert module.embedding(image).shape == (3, 128)
        assert [m.shape[1] for m in module.features(image)] == [32, 64, 128]
        module.bfloat16()


@pytest.mark.parametrize("positive_weight", ["none", "balanced"])
def test_learns_what_can_be_seen(positive_weight):
    stage = ClassifierStage(ClassifierConfig(positive_weight=positive_weight))
    training = batches(6, 32)
    module = train(stage, data=DATA, batches=lambda: training, steps=40, learning_rate=3e-3)
    metrics = stage.validate(module, batches(2, 64, first=50))
    assert metrics["auroc_macro"] > 0.95
    assert metrics["auroc_findings"] == 2
    assert metrics["cross_entropy"] < 0.5
    assert set(metrics) == {
        "auroc_macro", "auroc_findings", "auroc.edema", "auroc.fracture", "cross_entropy"
    }  # fmt: skip


def test_a_subset_of_findings_can_be_chosen_and_an_unknown_one_is_refused():
    stage = ClassifierStage(ClassifierConfig(findings=("fracture",)))
    module = stage.build({}, DATA)
    assert module(batch(2, 0).image).shape == (2, 1)
    assert stage.export(module).metadata["finding_names"] == ["fracture"]
    with pytest.raises(ValueError, match=r"Setting findings asks for edemaa.*edema, fracture"):
        ClassifierStage(ClassifierConfig(findings=("edemaa",))).build({}, DATA)


def test_validation_leaves_training_mode_and_random_state():
    stage = ClassifierStage(ClassifierConfig())
    module = stage.build({}, DATA).train()
    state = torch.get_rng_state()
    stage.validate(module, [batch(16, 0)])
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_stage_says_when_it_was_not_built():
    stage = ClassifierStage(ClassifierConfig())
    with pytest.raises(RuntimeError, match="call build before"):
        stage.export(torch.nn.Linear(1, 1))
