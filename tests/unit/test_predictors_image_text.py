"""The image-text encoder and its text tower."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.models.predictors.image_text import (
    MAX_SCALE,
    ImageTextEncoder,
    ImageTextEncoderConfig,
    ImageTextEncoderStage,
    contrastive,
    overlap_targets,
)
from counterray.models.predictors.text import TextConfig, TextTower, tokenize, train_tokenizer
from counterray.training.loop import train
from tests.predictor_toys import DATA, batch, batches

TEXT = TextConfig(context=24)


def test_contrastive_loss_by_hand():
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    logits = [[2.0, 1.2], [0.0, 1.6]]

    def cost(row: int, line: list[float]) -> float:
        return math.log(sum(math.exp(value) for value in line)) - line[row]

    by_image = sum(cost(row, logits[row]) for row in range(2)) / 2
    by_text = sum(cost(row, [line[row] for line in logits]) for row in range(2)) / 2
    loss = contrastive(image, text, torch.tensor(2.0), torch.eye(2))
    assert float(loss) == pytest.approx((by_image + by_text) / 2)


def test_targets_follow_the_overlap_of_known_findings():
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    known = torch.ones(4, 3, dtype=torch.bool)
    # Image 0 and 1 share one of two findings; 2 and 3 show none, so they overlap whole.
    overlap = torch.tensor([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    shares = overlap / overlap.sum(1, keepdim=True)
    assert torch.allclose(overlap_targets(labels, known, 1.0), shares)
    assert torch.allclose(overlap_targets(labels, known, 0.5), (torch.eye(4) + shares) / 2)
    assert torch.equal(overlap_targets(labels, known, 0.0), torch.eye(4))


def test_targets_without_known_labels_are_those_of_clip():
    labels = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    known = torch.tensor([[False, True], [True, False], [False, False]])
    assert torch.equal(overlap_targets(labels, known, 1.0), torch.eye(3))


def test_vocabulary_is_the_same_every_time_and_writes_any_text():
    texts = [report * 2 for report in DATA.reports]
    tokenizer = train_tokenizer(texts, TEXT)
    assert tokenizer.to_str() == train_tokenizer(texts, TEXT).to_str()
    assert tokenizer.get_vocab_size() <= TEXT.vocabulary
    assert "Ġfracture" in tokenizer.encode("No Fracture").tokens
    codes, present = tokenize(tokenizer, ["edema", "", "Ödem → 3 cm " * 9])
    assert codes.shape == present.shape == (3, TEXT.context)
    assert present.sum(1).tolist() == [3, 2, TEXT.context]


def test_vocabulary_needs_a_report():
    with pytest.raises(ValueError, match="no report to learn a vocabulary from"):
        ImageTextEncoderStage(ImageTextEncoderConfig()).build({}, replace(DATA, reports=("", " ")))


def test_text_states_ignore_padding():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(DATA.reports, TEXT)
    tower = TextTower(TEXT, tokenizer.get_vocab_size()).eval()
    alone_states, alone = tower(*tokenize(tokenizer, ["no edema"]))
    states, pooled = tower(*tokenize(tokenizer, ["no edema", DATA.reports[0]]))
    assert states.shape[2] == alone.shape[1] == TEXT.width
    assert torch.allclose(pooled[0], alone[0], atol=1e-5)
    assert torch.allclose(states[0, : alone_states.shape[1]], alone_states[0], atol=1e-5)


def encoder() -> ImageTextEncoder:
    return ImageTextEncoder(
        ImageTextEncoderConfig(text=TEXT), train_tokenizer(DATA.reports, TEXT), DATA.finding_names, 32
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_unit_length(dtype):
    module = encoder().to(dtype)
    image = batch(3, 0).image
    output = module(image, *tokenize(module.tokenizer, DATA.reports[:3]))
    assert output.image.shape == output.text.shape == (3, 64)
    assert output.logits.shape == (3, 2)
    assert {value.dtype for value in output} == {torch.float32}
    assert torch.allclose(output.image.norm(dim=1), torch.ones(3), atol=1e-4)
    assert torch.equal(module.features(image), output.image)
    assert torch.equal(module.finding_logits(output.image), output.logits)
    states, pooled = module.encode_text(DATA.reports[:3])
    assert states.shape[::2] == (3, TEXT.width)
    assert torch.allclose(pooled, output.text, atol=1e-2)


def test_temperature_has_a_limit():
    module = encoder()
    codes = tokenize(module.tokenizer, ["edema"])
    assert float(module(batch(1, 0).image, *codes).scale.detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    module.log_scale.data.fill_(9.0)
    assert float(module(batch(1, 0).image, *codes).scale.detach()) == pytest.approx(MAX_SCALE, rel=1e-5)


def test_learns_findings_their_texts_and_their_names():
    stage = ImageTextEncoderStage(ImageTextEncoderConfig(text=TEXT))
    assert stage.needs_reports
    training = batches(6, 32)
    module = train(stage, data=DATA, batches=lambda: training, steps=80, learning_rate=3e-3)
    metrics = stage.validate(module, batches(2, 48, first=50))
    assert metrics["auroc_macro"] > 0.95
    assert metrics["zero_shot_auroc_macro"] > 0.9
    # Which of the findings a toy report mentions cannot be seen: a third is the most that is sure at 1.
    assert metrics["recall_at_1"] > 0.2
    assert metrics["recall_at_5"] > 0.8


def test_images_without_report_teach_the_head_only():
    torch.manual_seed(0)
    stage = ImageTextEncoderStage(ImageTextEncoderConfig(text=TEXT, augmentation="none"))
    module = stage.build({}, DATA)
    toy = batch(4, 0)
    silent = stage.loss(module, replace(toy, reports=("", " ", DATA.reports[0], "")), 0)
    assert float(silent.parts["contrastive"]) == 0
    silent.total.backward()
    assert module.text_projection.weight.grad is None or not module.text_projection.weight.grad.any()
    assert module.image_projection.weight.grad.any()
    assert "recall_at_1" not in stage.validate(module, [replace(batch(32, 0), reports=("",) * 32)])
    with pytest.raises(ValueError, match="4 images and 0 reports"):
        stage.loss(module, replace(toy, reports=()), 0)


def test_labels_stand_in_for_missing_reports_where_asked():
    mute = replace(batch(8, 0), reports=("",) * 8)
    nothing_written = replace(DATA, reports=())
    stage = ImageTextEncoderStage(ImageTextEncoderConfig(text=TEXT, missing_reports="labels"))
    module = stage.build({}, nothing_written)
    labels, known = mute.findings, mute.finding_mask
    texts = stage._texts(mute, labels, known)
    for row, text in enumerate(texts):
        for column, name in enumerate(mute.finding_names):
            stated = f"There is {name.replace('_', ' ')}." in text
            assert stated == bool(labels[row, column] == 1)
    assert float(stage.loss(module, mute, 0).parts["contrastive"]) > 0
    reported = replace(mute, reports=("Written by a person.",) * 8)
    assert stage._texts(reported, labels, known) == ["Written by a person."] * 8


def test_text_settings_are_checked():
    with pytest.raises(ConfigError, match=r"width \(64\) must be divisible by heads \(5\)"):
        validate(ImageTextEncoderConfig, {"text": {"heads": 5}})
    with pytest.raises(ConfigError, match="vocabulary"):
        validate(ImageTextEncoderConfig, {"text": {"vocabulary": 100}})
