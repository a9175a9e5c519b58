"""Batches, judges and settings small enough for a law of gsvae to run in a second."""

import torch

from counterray.bundle import write_bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.gsvae.stages import GSVAEConfig, GSVAEStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.models.predictors.image_text import ImageTextEncoderConfig, ImageTextEncoderStage
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve

FINDINGS = ("no_finding", "cardiomegaly", "edema")
SIZE = 32
REPORTS = ("There is cardiomegaly.", "There is no edema. The heart is large.", "No finding.") * 4
INFO = DatasetInfo(image_size=SIZE, finding_names=FINDINGS, vocabulary={"sex": ("f", "m")}, reports=REPORTS)
NETWORK = {"widths": (8, 16), "transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
UNSUPERVISED = {"identity": 0.0, "pathology": 0.0}


def make_batch(count=8, seed=0):
    """Smooth images with every combination of two findings, patients of known age and sex."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator) * 2 - 1
    image = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    present = torch.tensor([[index % 2, index // 2 % 2] for index in range(count)], dtype=torch.float32)
    findings = torch.cat([(present.sum(1, keepdim=True) == 0).float(), present], dim=1)
    return Batch(
        image=image,
        attributes={"age": torch.linspace(30, 80, count), "sex": (torch.arange(count) % 3 == 0).float()},
        findings=findings,
        finding_mask=torch.ones_like(findings, dtype=torch.bool),
        finding_names=FINDINGS,
        reports=REPORTS[:count],
    )


def parents_of(batch):
    """A batch's attributes and findings by the names of a mechanism's parents."""
    findings = {f"finding.{name}": batch.findings[:, i] for i, name in enumerate(batch.finding_names)}
    return {**batch.attributes, **findings}


def make_stage(network=None, weights=None, **settings):
    """A small stage."""
    return GSVAEStage(GSVAEConfig(network={**NETWORK, **(network or {})}, weights=weights or {}, **settings))


def judge_bundles(folder):
    """Untrained judges of the small images, as bundles by role."""
    torch.manual_seed(7)
    backbone = BackboneConfig(widths=(8, 16), blocks=(1, 1))
    stages = {
        "identity": IdentityEncoderStage(IdentityEncoderConfig(backbone=backbone)),
        "pathology": ImageTextEncoderStage(ImageTextEncoderConfig(backbone=backbone)),
    }
    bundles = {}
    for role, stage in stages.items():
        module = stage.build({}, INFO)
        bundles[role] = write_bundle(
            resolve(folder / role),
            method="judges",
            stage=stage.name,
            config=stage.config.model_dump(mode="json"),
            export=stage.export(module),
            data_fingerprint="small",
        )
    return bundles
