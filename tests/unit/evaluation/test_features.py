from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from counterray.bundle import Bundle, write_bundle
from counterray.evaluation.features import checked, extract_features, feature_judge, layer_judge
from counterray.evaluation.metric import Judge
from counterray.evaluation.perceptual import perceptual_distance
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.common import PredictorStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.models.predictors.image_text import ImageTextEncoderConfig, ImageTextEncoderStage
from counterray.models.predictors.segmentor import SegmentorConfig, SegmentorStage
from counterray.models.predictors.text import TextConfig
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve
from tests.predictor_toys import DATA, MASKS, batch

SMALL = BackboneConfig(widths=(8, 16), blocks=(1, 1), stem_stride=4)
STAGES = {
    "classifier": ClassifierStage(ClassifierConfig(backbone=SMALL)),
    "identity_encoder": IdentityEncoderStage(IdentityEncoderConfig(backbone=SMALL, dimensions=6)),
    "image_text_encoder": ImageTextEncoderStage(
        ImageTextEncoderConfig(backbone=SMALL, dimensions=6, text=TextConfig(width=8, layers=1, heads=1))
    ),
    "segmentor": SegmentorStage(SegmentorConfig(masks=MASKS, widths=(8, 16))),
}


def bundle_of(name: str, folder: Path) -> tuple[Bundle, nn.Module]:
    stage: PredictorStage = STAGES[name]
    torch.manual_seed(0)
    module = stage.build({}, DATA).eval()
    export = stage.export(module)
    bundle = write_bundle(
        resolve(folder), method=name, stage=name, config={}, export=export, data_fingerprint="toy"
    )
    return bundle, module


def constant(width: int) -> Judge:
    return Judge(name="constant", checksum="0123456789", predict=lambda image: torch.ones(len(image), width))


@pytest.mark.parametrize("name", ["classifier", "identity_encoder", "image_text_encoder"])
def test_features_are_the_networks_own_whatever_the_batch(name: str, tmp_path: Path) -> None:
    bundle, module = bundle_of(name, tmp_path / "bundle")
    image = batch(5, 0).image
    judge = feature_judge(bundle)
    features = extract_features(judge, image, batch_size=2)
    with torch.no_grad():
        expected = module.embedding(image) if name == "classifier" else module.features(image)
    assert judge.label == f"{name}-features:{bundle.checksum[:8]}"
    assert features.dtype == torch.float64
    assert features.shape == (5, 16 if name == "classifier" else 6)
    torch.testing.assert_close(features, expected.double(), atol=1e-5, rtol=0)


def test_a_segmentor_gives_no_features(tmp_path: Path) -> None:
    bundle, _ = bundle_of("segmentor", tmp_path / "bundle")
    with pytest.raises(ValueError, match="'segmentor' gives no features"):
        feature_judge(bundle)
    with pytest.raises(ValueError, match="'segmentor' gives no features"):
        layer_judge(bundle)


def test_layers_are_the_backbones_stages(tmp_path: Path) -> None:
    bundle, module = bundle_of("classifier", tmp_path / "bundle")
    image = batch(2, 0).image
    judge = layer_judge(bundle, name="vgg")
    fine, coarse = judge.layers(image)
    assert judge.label == f"vgg:{bundle.checksum[:8]}"
    assert (fine.shape, coarse.shape) == ((2, 8, 8, 8), (2, 16, 4, 4))
    torch.testing.assert_close(fine, module.features(image)[0])
    assert perceptual_distance(image, image, judge).tolist() == [0.0, 0.0]
    assert (perceptual_distance(image, -image, judge) > 0.01).all()


def test_features_of_no_image() -> None:
    with pytest.raises(ValueError, match="constant:01234567 was given no image"):
        extract_features(constant(2), torch.zeros(0, 1, 4, 4))


def test_maps_are_no_features() -> None:
    judge = Judge(name="maps", checksum="1", predict=lambda image: image)
    with pytest.raises(ValueError, match=r"maps:1: features of shape \[3, 1, 4, 4\]"):
        extract_features(judge, torch.zeros(3, 1, 4, 4))


def test_features_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="judge: the features of 1 of 2 images are not finite"):
        checked(torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "judge")
