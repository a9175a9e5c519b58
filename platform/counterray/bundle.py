"""A trained model as a folder: safetensors, resolved config, manifest with checksums, model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from counterray.storage import Location, resolve

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""


class BundleError(ValueError):
    """A bundle that cannot be trusted or read; the message names the bundle, the file and the cause."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on storage, its manifest read and its checksums verified.

    Attributes:
        location: The folder.
        manifest: ``format``, ``method``, ``stage``, ``files`` (name to sha256), ``metadata`` (what the
            stage needs to rebuild the module), ``parents`` (role to ``uri`` and ``checksum``), ``judges``
            (name to checksum), ``data_fingerprint``, ``code_version``, ``metrics``.
    """

    location: Location
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """Name of the stage that made it, as in `catalog`."""
        return str(self.manifest["stage"])

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the stage needs beside the config to rebuild the module."""
        return dict(self.manifest["metadata"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration of the training run (plain values)."""
        return dict((self.location / "config.json").read_json())

    @property
    def checksum(self) -> str:
        """Checksum over the manifest, and through it over every file: the bundle's identity."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def tensors(self, name: str = "model") -> dict[str, Tensor]:
        """State dict stored under ``name``."""
        return safetensors.torch.load((self.location / f"{name}.safetensors").read_bytes())

    def file(self, name: str) -> bytes:
        """A further file, such as a tokenizer's JSON."""
        return (self.location / name).read_bytes()


def open_bundle(uri: str) -> Bundle:
    """Opens a bundle and verifies every checksum."""
    location = resolve(uri)
    return Bundle(location, (location / "manifest.json").read_json())
