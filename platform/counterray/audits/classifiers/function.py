"""A classifier as any Python function of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from counterray.audits.classifiers.contract import (
    AdapterConfig,
    ClassifierError,
    as_scores,
    fingerprint_of,
    in_pieces,
    require_findings,
)
from counterray.audits.classifiers.importing import imported
from counterray.audits.classifiers.preprocessing import Preprocessing
from counterray.evaluation.intervals import Floats


class FunctionConfig(AdapterConfig):
    """A Python function."""

    kind: Literal["function"] = "function"
    """The kind."""
    function: str
    """``module:function``; called with preprocessed images ``[N, C, H, W]`` (a torch tensor) and
    ``settings``, it returns probabilities ``[N, F]``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further arguments by name."""
    findings: tuple[str, ...] = ()
    """What the columns are, in order; by default the function's own attribute ``findings``."""
    preprocessing: Preprocessing = Preprocessing()
    """What it takes."""


class FunctionClassifier:
    """Implements `ImageClassifier` by a function.

    Args:
        config: Which one.

    Raises:
        ClassifierError: If it cannot be imported, or does not say its findings.
    """

    def __init__(self, config: FunctionConfig) -> None:
        self.config, self.name = config, config.name or config.function
        self._function, source = imported(self.name, config.function)
        named = config.findings or tuple(getattr(self._function, "findings", ()))
        self.findings = require_findings(self.name, named)
        self.fingerprint = fingerprint_of(config.model_copy(update={"findings": self.findings}), source)

    @torch.no_grad()
    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`.

        Raises:
            ClassifierError: If the function raises anything, or answers with another shape.
        """
        return np.concatenate([self._ask(piece) for piece in in_pieces(image, self.config.batch_size)])

    def _ask(self, piece: Tensor) -> Floats:
        try:
            found = self._function(self.config.preprocessing.apply(piece), **self.config.settings)
        except Exception as error:  # the user's function may fail in any way
            raise ClassifierError(
                f"Classifier {self.name!r} failed on {len(piece)} images: {type(error).__name__}: {error}"
            ) from error
        return as_scores(self.name, found, images=len(piece), findings=self.findings)
