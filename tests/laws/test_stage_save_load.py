"""A law of every stage of the predictors: through a bundle and back, nothing changes, to the bit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from counterray.bundle import Bundle, open_bundle, write_bundle
from counterray.config import validate
from counterray.models.predictors import load_judge
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.models.predictors.image_text import ImageTextEncoderConfig, ImageTextEncoderStage
from counterray.models.predictors.regressor import RegressorConfig, RegressorStage
from counterray.models.predictors.segmentor import SegmentorConfig, SegmentorStage
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve
from counterray.training.loop import train
from counterray.training.stage import Stage
from tests.predictor_toys import DATA, MASKS, batch

BACKBONE = BackboneConfig(widths=(8, 16), blocks=(1, 2))

STAGES: dict[str, Callable[[], Stage]] = {
    "classifier": lambda: ClassifierStage(ClassifierConfig(backbone=BACKBONE, findings=("fracture",))),
    "segmentor": lambda: SegmentorStage(SegmentorConfig(masks=MASKS, widths=(4, 8), blocks=2)),
    "regressor": lambda: RegressorStage(RegressorConfig(backbone=BACKBONE)),
    "demographic": lambda: DemographicStage(
        DemographicConfig(backbone=BACKBONE, attributes=("scanner", "sex"))
    ),
    "identity_encoder": lambda: IdentityEncoderStage(IdentityEncoderConfig(backbone=BACKBONE)),
    "image_text_encoder": lambda: ImageTextEncoderStage(ImageTextEncoderConfig(backbone=BACKBONE)),
}


def bundle_of(stage: Stage, module: nn.Module, folder: Path) -> Bundle:
    write_bundle(
        resolve(folder),
        method="predictors",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(module),
        data_fingerprint=DATA.fingerprint,
    )
    return open_bundle(str(folder))


def outputs(module: nn.Module, image: Tensor) -> list[Tensor]:
    if hasattr(module, "encode_text"):
        return [module.encode_image(image), *module.encode_text(DATA.reports)]
    result = module(image)
    return list(result.values()) if isinstance(result, dict) else [result]


@pytest.mark.parametrize("name", STAGES)
def test_bundle_gives_back_the_same_judge(name, tmp_path):
    stage = STAGES[name]()
    module = train(stage, data=DATA, batches=lambda: [batch(8, 0)], steps=2)
    judge = load_judge(bundle_of(stage, module, tmp_path / name))
    assert type(judge) is type(module)
    assert judge.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(judge.state_dict()[key], value) for key, value in module.state_dict().items())
    image = batch(3, 9).image
    with torch.no_grad():
        before, after = outputs(module, image), outputs(judge, image)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_judge_is_frozen_but_passes_gradients_to_the_image(name, tmp_path):
    stage = STAGES[name]()
    judge = load_judge(bundle_of(stage, stage.build({}, DATA), tmp_path / name))
    assert not judge.training
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    image = batch(2, 9).image.requires_grad_()
    outputs(judge, image)[0][0].abs().sum().backward()
    assert image.grad is not None
    assert float(image.grad[0].abs().sum()) > 0


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_its_config(name):
    stage = STAGES[name]()
    assert stage.name == name
    copy = pickle.loads(pickle.dumps(stage))
    assert copy.config == stage.config
    assert validate(type(stage.config), stage.config.model_dump(mode="json")) == stage.config


@pytest.mark.parametrize("name", STAGES)
def test_training_repeats_from_the_global_seed(name):
    weights = []
    for _ in range(2):
        module = train(STAGES[name](), data=DATA, batches=lambda: [batch(8, 0)], steps=2, seed=5)
        weights.append(module.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_other_bundles_are_no_judges(tmp_path):
    stage = STAGES["classifier"]()
    bundle = bundle_of(stage, stage.build({}, DATA), tmp_path / "bundle")
    other = Bundle(bundle.location, {**bundle.manifest, "stage": "gsvae"})
    with pytest.raises(ValueError, match=r"'gsvae', which is no judge. Judges are: classifier, segmentor"):
        load_judge(other)
