"""The image-text encoder: radiographs and reports in one space, whose distances follow pathology."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.predictors.augmentation import augment
from counterray.models.predictors.classifier import masked_binary_cross_entropy
from counterray.models.predictors.common import (
    PredictorStage,
    chosen,
    evaluating,
    export,
    finding_metrics,
    labels_of,
    require_built,
)
from counterray.models.predictors.retrieval import ranks, recall
from counterray.models.predictors.text import TextConfig, TextTower, tokenize, train_tokenizer
from counterray.nn.backbone import Backbone, BackboneConfig
from counterray.training.stage import Export, Losses, StageConfig

TOKENIZER_FILE = "tokenizer.json"
"""The vocabulary's file in a bundle."""

MAX_SCALE = 100.0
"""Largest inverse temperature (Radford et al., 2021, section 2.5)."""

GALLERY = 100
"""Images per retrieval task in validation: recall falls with the gallery, so its size is fixed."""


class ImageTextEncoderConfig(StageConfig):
    """Settings of the image-text encoder."""

    stage: Literal["image_text_encoder"] = "image_text_encoder"
    """Name of the stage."""
    backbone: BackboneConfig = BackboneConfig()
    """The image network."""
    text: TextConfig = TextConfig()
    """The text network and its vocabulary."""
    dimensions: int = Field(default=64, ge=2)
    """Number of features of the shared space."""
    findings: tuple[str, ...] | None = None
    """Findings of the linear head and the soft targets; all that the dataset labels where null."""
    finding_weight: float = Field(default=5.0, ge=0)
    """Weight of the linear head's cross-entropy beside the contrastive loss's 1."""
    overlap_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the contrastive target that follows the overlap of findings; 0 is CLIP."""
    missing_reports: Literal["skip", "labels"] = "skip"
    """Images without a report: left out of the contrastive loss, or given sentences made of their known
    labels by ``prompts``, for sources that have labels alone."""
    prompts: tuple[str, str] = ("There is {finding}.", "There is no {finding}.")
    """Texts that state and deny a finding, compared with an image without further training."""
    augmentation: Literal["none", "light"] = "light"
    """Small shifts, rotations, gamma and noise on training images."""


class ImageTextOutput(NamedTuple):
    """What one pass over a batch gives, in float32.

    Attributes:
        image: ``[B, D]`` image features of unit length.
        text: ``[B, D]`` text features of unit length.
        logits: ``[B, F]`` findings from the image features.
        scale: ``[]`` inverse temperature, at most `MAX_SCALE`.
    """

    image: Tensor
    text: Tensor
    logits: Tensor
    scale: Tensor


class ImageTextEncoder(nn.Module):
    """Two towers that meet on the unit sphere, and a linear head for findings on the image's side.

    Attributes:
        tokenizer: The vocabulary.
        finding_names: What the columns of the head's logits mean.
    """

    def __init__(
        self,
        config: ImageTextEncoderConfig,
        tokenizer: Tokenizer,
        finding_names: Sequence[str],
        image_size: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.finding_names = tuple(finding_names)
        self.backbone = Backbone(config.backbone, image_size)
        self.text = TextTower(config.text, tokenizer.get_vocab_size())
        self.image_projection = nn.Linear(self.backbone.width, config.dimensions, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.dimensions, bias=False)
        self.head = nn.Linear(config.dimensions, len(self.finding_names))
        # Radford et al., 2021, section 2.5: the temperature starts at 0.07.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, image: Tensor, codes: Tensor, present: Tensor) -> ImageTextOutput:
        """Both towers and the head: the one entry that training uses.

        Args:
            image: ``[B, 1, H, W]`` in [-1, 1].
            codes: ``[B, T]`` token codes.
            present: ``[B, T]`` bool, false on padding.
        """
        features = self.encode_image(image)
        _, pooled = self._encode_codes(codes, present)
        scale = self.log_scale.float().clamp(max=math.log(MAX_SCALE)).exp().squeeze(0)
        return ImageTextOutput(features, pooled, self.finding_logits(features), scale)

    def encode_image(self, image: Tensor) -> Tensor:
        """Image features ``[B, D]`` of unit length (float32)."""
        return functional.normalize(self.image_projection(self.backbone(image)).float(), dim=1)

    def features(self, image: Tensor) -> Tensor:
        """The pathology features that losses compare: `encode_image`, squared distances in [0, 4].

        They are the shared space's, not the backbone's pooled ones: only what the reports and the linear
        head ask for passes the projection, and that is pathology rather than anatomy.
        """
        return self.encode_image(image)

    def finding_logits(self, features: Tensor) -> Tensor:
        """Logits ``[B, F]`` (float32) of the linear head on image features ``[B, D]``."""
        # Unit features have entries near 1/√D; the head sees entries near 1.
        scaled = features * math.sqrt(features.shape[1])
        return torch.as_tensor(self.head(scaled.to(self.head.weight.dtype)).float())

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token states ``[B, T, W]`` and text features ``[B, D]`` of unit length (float32)."""
        device = self.text.tokens.weight.device
        codes, present = tokenize(self.tokenizer, texts)
        return self._encode_codes(codes.to(device), present.to(device))

    def _encode_codes(self, codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        states, pooled = self.text(codes, present)
        return states.float(), functional.normalize(self.text_projection(pooled).float(), dim=1)


def overlap_targets(labels: Tensor, known: Tensor, weight: float) -> Tensor:
    """Row-stochastic targets ``[B, B]`` for the contrastive loss: the own text, and texts of like findings.

    ``(1 − weight) I + weight J / Σ_j J``, where J_ij is the Jaccard overlap of the findings present in i and
    j among those known in both: 1 if neither shows any, 0 if none is known in both, and J_ii = 1.
    Departs from CLIP, whose target is I: most reports say the same ("no finding"), and I would push equal
    texts apart. MedCLIP (Wang et al., 2022, https://arxiv.org/abs/2210.10163, section 3.3) softens the
    target by the cosine of label vectors; Jaccard needs no temperature.

    Args:
        labels: ``[B, F]`` in {0, 1}.
        known: ``[B, F]`` bool.
        weight: In [0, 1].
    """
    both = (known[:, None] & known[None, :]).float()
    either = (both * torch.maximum(labels[:, None], labels[None, :])).sum(-1)
    shared = (both * labels[:, None] * labels[None, :]).sum(-1)
    overlap = torch.where(either > 0, shared / either.clamp(min=1), (both.sum(-1) > 0).float())
    identity = torch.eye(len(labels), device=labels.device)
    overlap = torch.maximum(overlap, identity)
    return (1 - weight) * identity + weight * overlap / overlap.sum(1, keepdim=True)


def contrastive(image: Tensor, text: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """Symmetric cross-entropy between scaled cosines and targets, over images and over texts.

    Reference: Radford et al., 2021, https://arxiv.org/abs/2103.00020, figure 3.

    Args:
        image: ``[B, D]`` of unit length.
        text: ``[B, D]`` of unit length.
        scale: Inverse temperature.
        targets: ``[B, B]`` symmetric up to row sums; rows sum to 1.
    """
    logits = scale * image @ text.T
    by_image = -(targets * logits.log_softmax(1)).sum(1).mean()
    by_text = -(targets * logits.T.log_softmax(1)).sum(1).mean()
    return (by_image + by_text) / 2


class ImageTextEncoderStage(PredictorStage):
    """Trains an `ImageTextEncoder`: contrastive over images with a report, cross-entropy over known findings.

    The linear head is an addition to CLIP: on the few thousand images of one site the contrastive loss alone
    learns common findings only. Negatives come from the same batch, on the same worker.
    """

    name = "image_text_encoder"
    needs_reports = True
    monitor = "auroc_macro"
    direction = "max"

    def __init__(self, config: ImageTextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.finding_names: tuple[str, ...] = ()
        self._tokenizer: Tokenizer | None = None
        self._data: DatasetInfo | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> nn.Module:
        """Fresh towers over a vocabulary learnt from the training split's reports."""
        self.finding_names = chosen(
            self.config.findings, data.finding_names, setting="findings", what="findings"
        )
        reports = [*data.reports]
        if self.config.missing_reports == "labels":
            reports += self._sentences(self.finding_names, 0) + self._sentences(self.finding_names, 1)
        self._tokenizer = train_tokenizer(reports, self.config.text)
        self._data = data
        return ImageTextEncoder(self.config, self._tokenizer, self.finding_names, data.image_size)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Contrastive loss plus the weighted cross-entropy of the linear head."""
        image = augment(batch.image) if self.config.augmentation == "light" else batch.image
        labels, known = labels_of(batch, self.finding_names)
        if len(batch.reports) != len(batch):
            raise ValueError(
                f"The batch has {len(batch)} images and {len(batch.reports)} reports; the image-text encoder "
                "needs a report (it may be empty) for each image."
            )
        texts = self._texts(batch, labels, known)
        output = self._forward(module, image, texts)
        written = torch.tensor([bool(text.strip()) for text in texts], device=image.device)
        targets = overlap_targets(labels[written], known[written], self.config.overlap_weight)
        pairs = output.image.new_zeros(())
        if len(targets) > 1:
            pairs = contrastive(output.image[written], output.text[written], output.scale, targets)
        findings = masked_binary_cross_entropy(output.logits, labels, known)
        total = pairs + self.config.finding_weight * findings
        parts = {"contrastive": pairs, "cross_entropy": findings, "scale": output.scale}
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Retrieval and AUROC.

        Returns:
            ``auroc_macro`` and the like of the linear head, ``zero_shot_auroc_macro`` and the like of the
            prompts (see `finding_metrics`; "no finding" has no prompt), and ``recall_at_1``,
            ``recall_at_5``: share of images whose own text is among the nearest k of the different texts of
            `GALLERY` images (the last gallery may be smaller; 1 is best).
        """
        images, texts, logits, labels, known = [], [], [], [], []
        reports: list[str] = []
        with evaluating(module):
            for batch in batches:
                batch_labels, batch_known = labels_of(batch, self.finding_names)
                batch_texts = self._texts(batch, batch_labels, batch_known)
                output = self._forward(module, batch.image, batch_texts)
                images.append(output.image)
                texts.append(output.text)
                logits.append(output.logits)
                labels.append(batch_labels)
                known.append(batch_known)
                reports += batch_texts
                example = batch.image[:1]
            truth, counts = torch.cat(labels), torch.cat(known)
            metrics = finding_metrics(torch.cat(logits), truth, counts, self.finding_names)
            columns = [
                column
                for column, name in enumerate(self.finding_names)
                if name != "no_finding" and f"auroc.{name}" in metrics
            ]
            if columns:
                names = [self.finding_names[column] for column in columns]
                scores = self._zero_shot(module, example, torch.cat(images), names)
                metrics |= finding_metrics(
                    scores, truth[:, columns], counts[:, columns], names, prefix="zero_shot_auroc"
                )
        return metrics | _recalls(torch.cat(images), torch.cat(texts), reports)

    def export(self, module: nn.Module) -> Export:
        """Weights, settings, the findings' order and the vocabulary."""
        if self._tokenizer is None:
            raise RuntimeError("The stage has not been built: call build before export.")
        return export(
            module,
            self.config,
            require_built(self._data),
            files={TOKENIZER_FILE: self._tokenizer.to_str().encode()},
            finding_names=list(self.finding_names),
            intended_use="Features of radiographs and reports that follow pathology, to supervise, to "
            "condition or to judge generated images.",
            limits="Not a medical device. The vocabulary holds fragments of the training reports; share the "
            "bundle under the reports' own terms. Valid for the training data's views and image size only.",
        )

    def _forward(self, module: nn.Module, image: Tensor, texts: Sequence[str]) -> ImageTextOutput:
        if self._tokenizer is None:
            raise RuntimeError("The stage has not been built: call build before loss or validate.")
        codes, present = tokenize(self._tokenizer, texts)
        output: ImageTextOutput = module(image, codes.to(image.device), present.to(image.device))
        return output

    def _texts(self, batch: Batch, labels: Tensor, known: Tensor) -> list[str]:
        """A text for each image: its report, or what ``missing_reports`` puts in its place."""
        if self.config.missing_reports == "skip":
            return list(batch.reports)
        texts = []
        for report, row, stated in zip(batch.reports, labels.tolist(), known.tolist(), strict=True):
            named = [pair for pair in zip(self.finding_names, row, stated, strict=True) if pair[2]]
            present = self._sentences([name for name, value, _ in named if value == 1], 0)
            denied = [name for name, value, _ in named if value == 0 and name != "no_finding"]
            absent = self._sentences(denied, 1)
            texts.append(report if report.strip() else " ".join(present or absent))
        return texts

    def _sentences(self, names: Sequence[str], prompt: int) -> list[str]:
        return [self.config.prompts[prompt].format(finding=name.replace("_", " ")) for name in names]

    def _zero_shot(
        self, module: nn.Module, example: Tensor, features: Tensor, names: Sequence[str]
    ) -> Tensor:
        """Cosine with the stating prompt minus cosine with the denying one, ``[N, F]``.

        The prompts pass through `forward` beside any one image, as engines that shard parameters gather
        them for that entry only.
        """
        prompts = self._sentences(names, 0) + self._sentences(names, 1)
        text = self._forward(module, example, prompts).text
        return features @ (text[: len(names)] - text[len(names) :]).T


def _recalls(image: Tensor, text: Tensor, reports: Sequence[str]) -> dict[str, float]:
    """Recall at 1 and 5 in galleries of `GALLERY` images with a report; empty where none has one."""
    written = [index for index, report in enumerate(reports) if report.strip()]
    found = []
    for start in range(0, len(written), GALLERY):
        rows = written[start : start + GALLERY]
        first = {reports[row]: row for row in reversed(rows)}
        found.append(
            ranks(image[rows], text[list(first.values())], [reports[row] for row in rows], list(first))
        )
    if not found:
        return {}
    positions = torch.cat(found)
    return {f"recall_at_{k}": recall(positions, k) for k in (1, 5)}


def load(bundle: Bundle) -> ImageTextEncoder:
    """The trained encoder of an `image_text_encoder` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    bundle.expect(ImageTextEncoderStage.name)
    encoder = rebuild(bundle.metadata, bundle.file(TOKENIZER_FILE))
    encoder.load_state_dict(bundle.tensors())
    return encoder.eval().requires_grad_(False)


def rebuild(metadata: Mapping[str, Any], tokenizer: bytes) -> ImageTextEncoder:
    """The encoder that a bundle's metadata and vocabulary describe, without its weights."""
    config = ImageTextEncoderConfig.model_validate(metadata["config"])
    return ImageTextEncoder(
        config, Tokenizer.from_buffer(tokenizer), metadata["finding_names"], int(metadata["image_size"])
    )
