"""A classifier as safetensors and the name of its architecture; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from counterray.audits.classifiers.contract import (
    Activation,
    AdapterConfig,
    ClassifierError,
    activate,
    as_scores,
    fingerprint_of,
    in_pieces,
    read_file,
    require_findings,
)
from counterray.audits.classifiers.importing import imported
from counterray.audits.classifiers.preprocessing import Preprocessing
from counterray.evaluation.intervals import Floats
from counterray.models.generator import generation_device
from counterray.nn.resnet import ResNet18
from counterray.storage import resolve

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {"resnet18": ResNet18}
"""Name to a function of ``outputs`` and settings that builds the network; ours only, as torchvision is no
part of this platform."""


class WeightsConfig(AdapterConfig):
    """Weights with a named architecture."""

    kind: Literal["weights"] = "weights"
    """The kind."""
    file: str
    """Safetensors: path or ``s3://`` URI."""
    architecture: str
    """One of `ARCHITECTURES`, or ``module:function`` that takes ``outputs`` and builds a network."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the architecture, such as ``width``."""
    findings: tuple[str, ...]
    """What its outputs are, in order."""
    preprocessing: Preprocessing = Preprocessing()
    """What it was trained to see."""
    activation: Activation = "sigmoid"
    """From its outputs to probabilities."""


class WeightsClassifier:
    """Implements `ImageClassifier` by a network of ours, or of the user's, and its weights.

    Args:
        config: Which ones.

    Raises:
        ClassifierError: If the architecture is unknown or refuses its settings, or the weights do not fit.
        StorageError: If the file cannot be read.
    """

    def __init__(self, config: WeightsConfig) -> None:
        self.config, self.name = config, config.name or config.file
        self.findings = require_findings(self.name, config.findings)
        data = read_file(self.name, resolve(config.file))
        build, source = _architecture(self.name, config.architecture)
        try:
            network = build(outputs=len(self.findings), **config.settings)
        except (TypeError, ValueError) as error:
            raise ClassifierError(
                f"Classifier {self.name!r}: architecture {config.architecture!r} refuses settings = "
                f"{config.settings}: {error}"
            ) from error
        try:
            network.load_state_dict(safetensors.torch.load(data))
        except (SafetensorError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ClassifierError(
                f"Classifier {self.name!r}: {config.file} does not hold the weights of "
                f"{config.architecture!r} with {len(self.findings)} outputs and settings {config.settings}: "
                f"{first}"
            ) from error
        self._device = generation_device()
        self._network = network.to(self._device).eval().requires_grad_(False)
        without_place = config.model_copy(update={"file": ""})
        self.fingerprint = fingerprint_of(without_place, hashlib.sha256(data).hexdigest(), source)

    @torch.no_grad()
    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`."""
        found = []
        for piece in in_pieces(image, self.config.batch_size):
            seen = self.config.preprocessing.apply(piece).to(self._device)
            try:
                found.append(activate(self._network(seen), self.config.activation).cpu())
            except (RuntimeError, ValueError) as error:
                raise ClassifierError(
                    f"Classifier {self.name!r} cannot read images {list(seen.shape)}: {error} Correct its "
                    "preprocessing (size, channels)."
                ) from error
        return as_scores(self.name, torch.cat(found), images=len(image), findings=self.findings)


def _architecture(name: str, architecture: str) -> tuple[Callable[..., nn.Module], str]:
    """What builds the network, and the checksum of its source where it is the user's."""
    if ":" in architecture:
        return imported(name, architecture)
    if architecture not in ARCHITECTURES:
        raise ClassifierError(
            f"Classifier {name!r}: architecture = {architecture!r} is none of {', '.join(ARCHITECTURES)}. "
            "Give another as module:function that takes outputs and builds a torch network, or export the "
            "classifier to ONNX."
        )
    return ARCHITECTURES[architecture], ""
