"""A classifier that this platform trained: a bundle of a classifier or an image–text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from counterray.audits.classifiers.contract import (
    AdapterConfig,
    ClassifierError,
    as_scores,
    fingerprint_of,
    require_findings,
)
from counterray.audits.classifiers.preprocessing import resized
from counterray.bundle import open_bundle
from counterray.evaluation.intervals import Floats
from counterray.evaluation.judge import open_judge

STAGES = ("classifier", "image_text_encoder")
"""Stages that answer with probabilities of findings."""


class BundleConfig(AdapterConfig):
    """A bundle."""

    kind: Literal["bundle"] = "bundle"
    """The kind."""
    uri: str
    """Folder or ``s3://`` URI."""
    size: int | None = Field(default=None, ge=1)
    """Edge that images are resized to first [px], for a bundle that was trained on another size."""


class BundleClassifier:
    """Implements `ImageClassifier` by a bundle.

    Args:
        config: Which one.

    Raises:
        BundleError: If the bundle cannot be trusted.
        ClassifierError: If it is no classifier of findings.
    """

    def __init__(self, config: BundleConfig) -> None:
        self.config, self.name = config, config.name or config.uri
        self.bundle = open_bundle(config.uri)
        if self.bundle.stage not in STAGES:
            raise ClassifierError(
                f"Classifier {self.name!r} is a bundle of stage {self.bundle.stage!r}, which scores no "
                f"findings. Stages that do: {', '.join(STAGES)}."
            )
        self.judge = open_judge(self.bundle)
        self.findings = require_findings(self.name, self.judge.outputs)
        self.fingerprint = fingerprint_of(config.model_copy(update={"uri": ""}), self.bundle.checksum)
        self.image_size = int(self.bundle.metadata["image_size"])

    @torch.no_grad()
    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`.

        Raises:
            ClassifierError: If the images have another size than it was trained on and no ``size`` is set.
        """
        image = resized(image, self.config.size)
        if image.shape[-1] != self.image_size:
            raise ClassifierError(
                f"Classifier {self.name!r} was trained on images of {self.image_size} px; these have "
                f"{image.shape[-1]} px. Set size: {self.image_size} in its YAML file to resize them, or "
                "audit on data of its size."
            )
        found = self.judge.scores(image, batch_size=self.config.batch_size)
        return as_scores(self.name, found, images=len(image), findings=self.findings)
