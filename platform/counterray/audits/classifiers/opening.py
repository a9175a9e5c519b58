"""From an address or a YAML file to a classifier: the kinds there are, and their short forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any

from pydantic import Field

from counterray.audits.classifiers.bundle import BundleClassifier, BundleConfig
from counterray.audits.classifiers.contract import ClassifierError, ImageClassifier
from counterray.audits.classifiers.endpoint import EndpointClassifier, EndpointConfig
from counterray.audits.classifiers.function import FunctionClassifier, FunctionConfig
from counterray.audits.classifiers.huggingface import HuggingFaceClassifier, HuggingFaceConfig
from counterray.audits.classifiers.onnx import OnnxClassifier, OnnxConfig
from counterray.audits.classifiers.table import TableClassifier, TableConfig
from counterray.audits.classifiers.weights import WeightsClassifier, WeightsConfig
from counterray.config import Config, read, validate
from counterray.storage import resolve

AnyClassifier = Annotated[
    BundleConfig
    | EndpointConfig
    | FunctionConfig
    | HuggingFaceConfig
    | OnnxConfig
    | TableConfig
    | WeightsConfig,
    Field(discriminator="kind"),
]
"""Settings of a classifier of any kind."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_GENERIC = ("bundle", "model", "export", "best")
"""Names of folders and files that say nothing by themselves."""


class DescribedClassifier(Config):
    """A classifier's own YAML file."""

    classifier: AnyClassifier
    """Kind and settings."""


def read_classifier(text: str) -> AnyClassifier:
    """The settings of what ``--classifier`` names.

    Args:
        text: A YAML file with the settings of one kind; or, for a kind whose settings have defaults: a folder
            or ``s3://`` URI of a bundle, a folder of a Hugging Face model, ``<file>.onnx``,
            ``<predictions>.csv`` or ``.parquet``, ``module:function``.

    Raises:
        ClassifierError: If it is none of these, or needs a YAML file.
        ConfigError: If the YAML file is wrong.
        StorageError: If storage cannot be used.
    """
    if text.endswith((".yaml", ".yml")):
        return validate(DescribedClassifier, {"classifier": read(text)}).classifier
    if text.startswith(("http://", "https://")):
        raise ClassifierError(
            f"--classifier {text}: an endpoint needs a YAML file with kind: http, url, and findings (what "
            "its scores are, in order)."
        )
    if text.endswith(".onnx"):
        return OnnxConfig(file=text, name=short_name(text))
    if text.endswith((".csv", ".parquet")):
        return TableConfig(file=text, name=short_name(text))
    if text.endswith(".safetensors"):
        raise ClassifierError(
            f"--classifier {text}: weights need a YAML file with kind: weights, file, architecture "
            "and findings."
        )
    if _FUNCTION.fullmatch(text):
        return FunctionConfig(function=text)
    place = resolve(text)
    if (place / "manifest.json").exists():
        return BundleConfig(uri=text, name=short_name(text))
    if (place / "config.json").exists():
        return HuggingFaceConfig(folder=text, name=short_name(text))
    raise ClassifierError(
        f"--classifier {text} is no bundle (a folder with manifest.json), no Hugging Face folder "
        "(config.json), no .onnx, .csv, .parquet or .yaml file, and no module:function."
    )


def short_name(address: str) -> str:
    """The last part of an address that says something: ``resnet`` of ``runs/resnet/bundle``."""
    parts = [part for part in re.split(r"[/\\]", address.partition("://")[2] or address) if part]
    stems = [re.sub(r"\.(onnx|csv|parquet)$", "", part) for part in parts]
    return next((stem for stem in reversed(stems) if stem not in (*_GENERIC, ".", "..")), address)


def open_classifier(config: AnyClassifier, *, allowed_hosts: Collection[str] = ()) -> ImageClassifier:
    """A classifier, ready to answer.

    Args:
        config: Its settings.
        allowed_hosts: Hosts that images may be sent to.

    Raises:
        BundleError: If a bundle cannot be trusted.
        ClassifierError: If it cannot be opened.
        StorageError: If storage cannot be used.
    """
    if isinstance(config, EndpointConfig):
        return EndpointClassifier(config, allowed_hosts=allowed_hosts)
    return _CLASSES[type(config)](config)


_CLASSES: dict[type[Any], Callable[[Any], ImageClassifier]] = {
    BundleConfig: BundleClassifier,
    FunctionConfig: FunctionClassifier,
    HuggingFaceConfig: HuggingFaceClassifier,
    OnnxConfig: OnnxClassifier,
    TableConfig: TableClassifier,
    WeightsConfig: WeightsClassifier,
}


def require_distinct(names: Sequence[str]) -> None:
    """Raises if two classifiers have one name.

    Raises:
        ClassifierError: With the name.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ClassifierError(
            f"Two classifiers are called {twice[0]!r}. Describe one in a YAML file and give it another name."
        )
