"""A Hugging Face image classifier from a local folder; no hub is asked, no code of it is run."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
    require_findings,
)
from counterray.audits.classifiers.preprocessing import Preprocessing
from counterray.evaluation.intervals import Floats
from counterray.models.generator import generation_device
from counterray.storage import resolve

_ACTIVATIONS: dict[str, Activation] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}


class HuggingFaceConfig(AdapterConfig):
    """A folder that ``save_pretrained`` wrote."""

    kind: Literal["huggingface"] = "huggingface"
    """The kind."""
    folder: str
    """Local folder."""
    findings: tuple[str, ...] = ()
    """What its outputs are, in order; the model's own labels by default."""
    preprocessing: Preprocessing | None = None
    """What it was trained to see; as the folder's ``preprocessor_config.json`` says by default."""
    activation: Activation | None = None
    """From its outputs to probabilities; as the model's ``problem_type`` says by default."""


class HuggingFaceClassifier:
    """Implements `ImageClassifier` by a model of ``transformers``.

    Args:
        config: Which one.

    Raises:
        ClassifierError: If ``transformers`` is not installed, the folder holds no image classifier with
            safetensors, or something that the settings leave open is not in it either.
    """

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config, self.name = config, config.name or config.folder
        place = resolve(config.folder)
        folder = Path(place.path)
        if not place.is_local or not (folder / "config.json").is_file():
            raise ClassifierError(
                f"Classifier {self.name!r}: {config.folder} is no local folder with a config.json. Download "
                "or save the model there first; nothing is fetched from a hub."
            )
        network = _load(self.name, folder)
        self.findings = require_findings(self.name, config.findings or _labels(network))
        self.activation = config.activation or _activation(self.name, network)
        self.preprocessing = config.preprocessing or read_preprocessing(
            self.name, folder, channels=1 if getattr(network.config, "num_channels", 3) == 1 else 3
        )
        self._device = generation_device()
        self._network = network.to(self._device).eval().requires_grad_(False)
        decided = config.model_copy(
            update={
                "folder": "",
                "findings": self.findings,
                "activation": self.activation,
                "preprocessing": self.preprocessing,
            }
        )
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        sums = [f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        self.fingerprint = fingerprint_of(decided, *sums)

    @torch.no_grad()
    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]``; see `ImageClassifier`."""
        found = []
        for piece in in_pieces(image, self.config.batch_size):
            seen = self.preprocessing.apply(piece).to(self._device)
            try:
                found.append(activate(self._network(pixel_values=seen).logits, self.activation).cpu())
            except (RuntimeError, ValueError) as error:
                raise ClassifierError(
                    f"Classifier {self.name!r} cannot read images {list(seen.shape)}: {error} Correct its "
                    "preprocessing (size, channels)."
                ) from error
        return as_scores(self.name, torch.cat(found), images=len(image), findings=self.findings)


def read_preprocessing(name: str, folder: Path, *, channels: Literal[1, 3]) -> Preprocessing:
    """What ``preprocessor_config.json`` says of networks that see so many channels.

    Raises:
        ClassifierError: If it is not there, or says something else than a size, a scale, mean and std.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise ClassifierError(
            f"Classifier {name!r} has no preprocessor_config.json; state preprocessing (size, channels, "
            "mean, std) in its YAML file."
        )
    said = json.loads(file.read_text(encoding="utf-8"))
    size = said.get("size")
    edges = {size} if isinstance(size, int) else set((size or {}).values())
    if said.get("do_resize", True) is False:
        edges = {None}
    scale = said.get("rescale_factor", 1 / 255)
    cropped = said.get("do_center_crop", False)
    if cropped or len(edges) != 1 or (said.get("do_rescale", True) and abs(scale * 255 - 1) > 1e-6):
        raise ClassifierError(
            f"Classifier {name!r}: preprocessor_config.json asks for size {size}, scale {scale:g} "
            f"and {'a' if cropped else 'no'} crop, which is not just a square of values 0 to 1. State "
            "preprocessing in its YAML file."
        )
    normal = said.get("do_normalize", True)
    return Preprocessing(
        size=edges.pop(),
        channels=channels,
        high=1.0 if said.get("do_rescale", True) else 255.0,
        mean=tuple(said.get("image_mean") or ()) if normal else (),
        std=tuple(said.get("image_std") or ()) if normal else (),
    )


def _load(name: str, folder: Path) -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ClassifierError(
            f"Classifier {name!r} needs the package transformers: pip install 'counterray[hub]'."
        ) from None
    try:
        return transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ClassifierError(
            f"Classifier {name!r}: {folder} holds no image classifier that transformers "
            f"{transformers.__version__} can open from safetensors: {first}"
        ) from error


def _labels(network: Any) -> tuple[str, ...]:
    """The model's own labels; none where they are only numbers."""
    labels = [str(label) for _, label in sorted(network.config.id2label.items())]
    return () if all(label.startswith("LABEL_") for label in labels) else tuple(labels)


def _activation(name: str, network: Any) -> Activation:
    problem = network.config.problem_type
    if problem not in _ACTIVATIONS:
        raise ClassifierError(
            f"Classifier {name!r} does not say whether its labels exclude each other (problem_type is "
            f"{problem}). State activation: sigmoid (several findings at once) or softmax in its YAML file."
        )
    return _ACTIVATIONS[problem]
