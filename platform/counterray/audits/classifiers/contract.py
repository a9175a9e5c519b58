"""`ImageClassifier`: all that an audit asks of a classifier, whatever it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor

from counterray.audits.classifiers.thresholds import ThresholdConfig
from counterray.audits.errors import AuditError
from counterray.config import Config
from counterray.evaluation.intervals import Floats
from counterray.storage import Location

Activation = Literal["sigmoid", "softmax", "none"]
"""From outputs to probabilities: of findings by themselves, of classes that exclude each other, or as is."""


class ClassifierError(AuditError):
    """A classifier cannot be opened or asked; the message names it, the cause and the remedy."""


class AdapterConfig(Config):
    """What every kind of classifier has."""

    name: str = ""
    """What reports call it; taken from its address by default."""
    threshold: ThresholdConfig = ThresholdConfig()
    """From which probability a finding is called."""
    batch_size: int = Field(default=64, ge=1)
    """Images at a time at most."""


class ImageClassifier(Protocol):
    """Answers with probabilities of findings.

    Attributes:
        name: What reports call it.
        findings: What its F outputs are.
        fingerprint: Checksum over all that decides its answers, as far as it can be known from here.
    """

    name: str
    findings: tuple[str, ...]
    fingerprint: str

    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; NaN where the classifier gave no number.

        Args:
            image: ``[N, 1, H, W]`` in [-1, 1].
            keys: Names of the N images in the exported set; only predictions made elsewhere are found by
                them.

        Raises:
            ClassifierError: If it cannot answer, or its answer is no ``[N, F]``.
        """
        ...


def activate(outputs: Tensor, activation: Activation) -> Tensor:
    """Probabilities ``[N, F]`` of outputs ``[N, F]``."""
    outputs = outputs.float()
    if activation == "sigmoid":
        return outputs.sigmoid()
    return outputs.softmax(dim=1) if activation == "softmax" else outputs


def as_scores(name: str, values: ArrayLike | Tensor, *, images: int, findings: Sequence[str]) -> Floats:
    """Answers as float64 ``[N, F]``; what is no probability is told by the audit, target by target.

    Raises:
        ClassifierError: If the shape is another.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ClassifierError(f"Classifier {name!r} answered with something that is no numbers.") from None
    if scores.shape != (images, len(findings)):
        raise ClassifierError(
            f"Classifier {name!r} answered with shape {list(scores.shape)} to {images} images; "
            f"{[images, len(findings)]} is needed, a probability for each of its findings "
            f"({', '.join(findings)}). Correct its findings, or the choice of its output."
        )
    return scores


def require_findings(name: str, findings: Sequence[str]) -> tuple[str, ...]:
    """The findings themselves, if there are some, each named once.

    Raises:
        ClassifierError: If not.
    """
    if not findings:
        raise ClassifierError(
            f"Classifier {name!r} does not say what its outputs are. Describe it in a YAML file with "
            "findings: [<name of each output, in order>] and give that file."
        )
    twice = sorted({finding for finding in findings if list(findings).count(finding) > 1})
    if twice:
        raise ClassifierError(f"Classifier {name!r}: findings name {twice[0]!r} twice.")
    return tuple(findings)


def fingerprint_of(config: AdapterConfig, *contents: str) -> str:
    """Checksum over the settings that decide answers, and over checksums of contents."""
    settings = config.model_dump(mode="json", exclude={"name", "threshold", "batch_size"})
    return digest({"config": settings, "contents": list(contents)})


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_file(name: str, place: Location) -> bytes:
    """A classifier's file.

    Raises:
        ClassifierError: If there is none.
        StorageError: If storage cannot be used.
    """
    if not place.is_file():
        raise ClassifierError(f"Classifier {name!r}: there is no file {place.uri}.")
    return place.read_bytes()


def in_pieces(image: Tensor, size: int) -> list[Tensor]:
    """The images, ``size`` at a time."""
    return list(torch.split(image, size))
