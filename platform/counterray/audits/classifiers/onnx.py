"""A classifier as an ONNX file, run by onnxruntime."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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
from counterray.audits.classifiers.preprocessing import Preprocessing
from counterray.evaluation.intervals import Floats
from counterray.storage import resolve

FINDINGS_KEY = "findings"
"""Key of the file's own metadata under which findings may stand, separated by commas."""


class OnnxConfig(AdapterConfig):
    """An ONNX file."""

    kind: Literal["onnx"] = "onnx"
    """The kind."""
    file: str
    """Path or ``s3://`` URI."""
    findings: tuple[str, ...] = ()
    """What its outputs are, in order; by default as the file's metadata ``findings`` says."""
    preprocessing: Preprocessing = Preprocessing()
    """What it was trained to see."""
    activation: Activation = "sigmoid"
    """From its outputs to probabilities; ``none`` where the file ends with them."""
    output: str = ""
    """Name of the output to read; the only one by default."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Where onnxruntime computes, the first that is there."""


class OnnxClassifier:
    """Implements `ImageClassifier` by an ONNX file.

    Args:
        config: Which one.

    Raises:
        ClassifierError: If onnxruntime is not installed, the file is none, or its inputs, outputs or findings
            are not as they must be.
        StorageError: If the file cannot be read.
    """

    def __init__(self, config: OnnxConfig) -> None:
        self.config, self.name = config, config.name or config.file
        data = read_file(self.name, resolve(config.file))
        self._session = _session(self.name, data, config)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ClassifierError(
                f"Classifier {self.name!r} takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}; one "
                "input [N, C, H, W] is needed. Export it with images as its only input."
            )
        self._input = inputs[0]
        self._output = self._choose_output()
        named = config.findings or tuple(
            part.strip()
            for part in self._session.get_modelmeta().custom_metadata_map.get(FINDINGS_KEY, "").split(",")
            if part.strip()
        )
        self.findings = require_findings(self.name, named)
        without_place = config.model_copy(update={"file": "", "findings": self.findings})
        self.fingerprint = fingerprint_of(without_place, hashlib.sha256(data).hexdigest())

    def _choose_output(self) -> str:
        names = [output.name for output in self._session.get_outputs()]
        if self.config.output in names:
            return self.config.output
        if self.config.output or len(names) != 1:
            raise ClassifierError(
                f"Classifier {self.name!r}: output = {self.config.output!r}; the file has "
                f"{', '.join(names)}. Set output to the one with the findings."
            )
        return str(names[0])

    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`."""
        fixed = self._input.shape[0] if isinstance(self._input.shape[0], int) else None
        found = []
        for piece in in_pieces(image, fixed or self.config.batch_size):
            seen = self.config.preprocessing.apply(piece).numpy()
            if fixed and len(piece) < fixed:  # a file of a fixed batch size takes no smaller one
                seen = np.concatenate([seen, np.repeat(seen[-1:], fixed - len(piece), axis=0)])
            found.append(self._run(seen)[: len(piece)])
        outputs = torch.from_numpy(np.concatenate(found))
        if outputs.ndim == 2:
            outputs = activate(outputs, self.config.activation)
        return as_scores(self.name, outputs, images=len(image), findings=self.findings)

    def _run(self, seen: Any) -> Any:
        try:
            return self._session.run([self._output], {self._input.name: seen})[0]
        except Exception as error:  # onnxruntime's own classes have no public common base
            raise ClassifierError(
                f"Classifier {self.name!r} cannot read images {list(seen.shape)} (its input is "
                f"{self._input.type} {self._input.shape}): {type(error).__name__}. Correct its preprocessing."
            ) from error


def _session(name: str, data: bytes, config: OnnxConfig) -> Any:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ClassifierError(
            f"Classifier {name!r} is an ONNX file, which needs onnxruntime: pip install 'counterray[onnx]'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(data, options, providers=list(config.providers))
    except Exception as error:  # as above
        raise ClassifierError(
            f"Classifier {name!r} cannot be opened by onnxruntime {onnxruntime.__version__} on "
            f"{', '.join(config.providers)} ({type(error).__name__}): it is no ONNX file, was cut off, or "
            "needs a newer onnxruntime."
        ) from error
