"""A trained model as a folder: safetensors, resolved config, manifest with checksums, model card."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from counterray import __version__
from counterray.model_card import model_card
from counterray.storage import Location, MissingError, publish, resolve

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""

MANIFEST = "manifest.json"
CONFIG = "config.json"
CARD = "README.md"

_REQUIRED = (
    *("method", "stage", "metadata", "files", "checksum"),
    *("parents", "judges", "data_fingerprint", "code_version", "metrics"),
)
"""What a manifest must have beside ``format``."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class BundleError(ValueError):
    """A bundle that cannot be trusted or read; the message names the bundle, the file and the cause."""


class Exported(Protocol):
    """What a trained module leaves behind, as `training.stage.Export` has it."""

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """File stem to state dict."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Plain JSON that rebuilds the module, beside the config."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Further files by name."""

    @property
    def intended_use(self) -> str:
        """One paragraph for the model card."""

    @property
    def limits(self) -> str:
        """One paragraph for the model card."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on storage, its manifest read and its checksums verified.

    Nothing in it is ever unpickled.

    Attributes:
        location: The folder.
        manifest: ``format``, ``method``, ``stage``, ``files`` (name to sha256), ``metadata`` (what the
            stage needs to rebuild the module), ``parents`` (role to ``uri``, ``checksum`` and ``stage``),
            ``judges`` (name to checksum), ``data_fingerprint``, ``code_version``, ``metrics``, ``checksum``.
    """

    location: Location
    manifest: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Name of the method, as in `catalog`."""
        return str(self.manifest["method"])

    @property
    def stage(self) -> str:
        """Name of the stage that made it, as in `catalog`."""
        return str(self.manifest["stage"])

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the stage needs beside the config to rebuild the module."""
        return dict(self.manifest["metadata"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """Validation metrics at export; NaN where one was undefined."""
        metrics: Mapping[str, float | None] = self.manifest["metrics"]
        return {name: math.nan if value is None else value for name, value in metrics.items()}

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration of the training run (plain values)."""
        return dict(json.loads(self.file(CONFIG)))

    @property
    def checksum(self) -> str:
        """Identity of the bundle: over every file and the manifest, wherever it and its parents lie."""
        return str(self.manifest["checksum"])

    def tensors(self, name: str = "model") -> dict[str, Tensor]:
        """State dict stored under ``name``, on the CPU.

        Raises:
            BundleError: If there is none of that name, or the file is not whole.
        """
        file = f"{name}.safetensors"
        try:
            return safetensors.torch.load(self.file(file))
        except SafetensorError as error:
            raise self._error(file, f"no valid safetensors: {error}") from None

    def file(self, name: str) -> bytes:
        """A file's content, such as a tokenizer's JSON, its checksum verified once more.

        Raises:
            BundleError: If there is none of that name, or it has changed since the bundle was opened.
        """
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise self._error(name, f"not part of the bundle, which has: {known}")
        data = (self.location / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]:
            raise self._error(name, "its content changed since the bundle was written; train or copy it anew")
        return data

    def expect(self, stage: str) -> Bundle:
        """The bundle itself, if ``stage`` made it.

        Raises:
            BundleError: If another stage did.
        """
        if self.stage != stage:
            raise BundleError(
                f"Bundle {self.location.uri} was made by stage {self.stage!r}; {stage!r} is needed here."
            )
        return self

    def _error(self, file: str, cause: str) -> BundleError:
        return BundleError(f"Bundle {self.location.uri}, file {file!r}: {cause}.")


def open_bundle(uri: str | Path | Location) -> Bundle:
    """Opens a bundle and verifies every checksum.

    Raises:
        BundleError: If there is no manifest, its format is another, a file is missing, changed or truncated,
            or there are weights that the manifest does not know.
        StorageError: If storage cannot be used.
    """
    location = uri if isinstance(uri, Location) else resolve(uri)
    bundle = Bundle(location, read_manifest(location))
    recorded = bundle.manifest["files"]
    present = set(location.files())
    for name, checksum in recorded.items():
        if name not in present:
            raise bundle._error(name, "it is missing; the copy is incomplete")
        if (location / name).sha256() != checksum:
            raise bundle._error(
                name, "its content is not what was written (truncated or tampered with); copy or train anew"
            )
    for name in sorted(present - set(recorded)):
        if name.endswith(".safetensors"):
            raise bundle._error(name, "the manifest does not know these weights; remove the file")
    return bundle


def write_bundle(
    location: Location,
    *,
    method: str,
    stage: str,
    config: Mapping[str, Any],
    export: Exported,
    data_fingerprint: str,
    parents: Mapping[str, Bundle] | None = None,
    judges: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes a bundle, replacing what is there; it appears whole or not at all.

    Args:
        location: The folder.
        method: Name of the method, as in `catalog`.
        stage: Name of the stage, as in `catalog`.
        config: The resolved configuration, plain JSON values.
        export: Weights, metadata, files and words of the trained module.
        data_fingerprint: Fingerprint of the dataset it was trained on.
        parents: Role to bundle of an earlier stage.
        judges: Name to checksum of the networks that took part in losses or metrics.
        metrics: Validation metrics; an undefined one is NaN.
        training: What the card says of the run, such as steps, workers and duration (with its unit).

    Returns:
        The bundle, opened from where it was written.

    Raises:
        BundleError: If a file name is not plain or is taken, metadata or config are not plain JSON, or the
            folder holds something else, such as a dataset.
        StorageError: If storage cannot be used; what was there before is then unchanged.
    """
    _refuse_foreign(location)
    contents = _contents(location, config, export)
    finite = {name: value if math.isfinite(value) else None for name, value in (metrics or {}).items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "method": method,
        "stage": stage,
        "metadata": json.loads(_json(location, "metadata", export.metadata)),
        "parents": {
            role: {"uri": parent.location.uri, "checksum": parent.checksum, "stage": parent.stage}
            for role, parent in (parents or {}).items()
        },
        "judges": dict(judges or {}),
        "data_fingerprint": data_fingerprint,
        "code_version": code_version(),
        "metrics": finite,
    }
    card = model_card(
        manifest,
        intended_use=export.intended_use,
        limits=export.limits,
        training=training or {},
        tensors={
            name: sum(tensor.numel() for tensor in state.values()) for name, state in export.tensors.items()
        },
    )
    contents[CARD] = card.encode()
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest["checksum"] = _checksum(manifest)
    with publish(location, last=MANIFEST) as folder:
        staging = resolve(folder)
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        (staging / MANIFEST).write_json(manifest)
    return open_bundle(location)


@functools.cache
def code_version() -> str:
    """Version of the package, and of the git checkout it runs from: ``0.1.0+g1234abc``, or ``…-dirty``."""
    file = Path(__file__)
    # Tracked, because an installed copy may well lie inside somebody else's checkout.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return __version__
    commit = _git(file.parent, "rev-parse", "--short=7", "HEAD")
    changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{__version__}+g{commit}{'-dirty' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; ``None`` where there is no git, no checkout or no such file."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _refuse_foreign(location: Location) -> None:
    """Writing replaces a folder, so it must not be a dataset's."""
    if not (location / MANIFEST).exists():
        return
    manifest = (location / MANIFEST).read_json()
    if not isinstance(manifest, dict) or not {"method", "stage"} <= set(manifest):
        raise BundleError(f"{location.uri} holds something that is no bundle; choose another folder.")


def _contents(location: Location, config: Mapping[str, Any], export: Exported) -> dict[str, bytes]:
    contents = {CONFIG: _json(location, "config", config)}
    for stem, state in export.tensors.items():
        # Cloned, as safetensors refuses tensors that share memory, such as tied weights.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
        contents[f"{stem}.safetensors"] = safetensors.torch.save(copies)
    for name, data in export.files.items():
        if name in contents or name in (MANIFEST, CARD) or name.endswith(".safetensors"):
            raise BundleError(f"Bundle {location.uri}: the file name {name!r} is taken; choose another.")
        contents[name] = data
    for name in contents:
        if not _FILE_NAME.fullmatch(name):
            raise BundleError(
                f"Bundle {location.uri}: {name!r} is no plain file name (letters, digits, '.', '_', '-')."
            )
    return contents


def _json(location: Location, what: str, value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"Bundle {location.uri}: its {what} is not plain JSON: {error}.") from None


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of everything that the bundle is, and nothing of where it or its parents lie."""
    identity = {name: value for name, value in manifest.items() if name != "checksum"}
    identity["parents"] = {
        role: {name: value for name, value in parent.items() if name != "uri"}
        for role, parent in manifest["parents"].items()
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_manifest(location: Location) -> Mapping[str, Any]:
    """A bundle's manifest, verified itself; the files that it names are not looked at, as `open_bundle` does.

    Raises:
        BundleError: If there is none, its format is another, or it was changed.
        StorageError: If storage cannot be used.
    """
    place = f"Bundle {location.uri}, file {MANIFEST!r}:"
    try:
        text = (location / MANIFEST).read_bytes()
    except MissingError as error:
        raise BundleError(
            f"{place} it is missing, so this is no bundle, or one that was never finished."
        ) from error
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{place} not valid JSON: {error}.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{place} its format is {found!r}; this version of counterray reads {FORMAT}.")
    if missing := [name for name in _REQUIRED if name not in manifest]:
        raise BundleError(f"{place} it lacks {', '.join(missing)}.")
    if manifest["checksum"] != _checksum(manifest):
        raise BundleError(f"{place} its content is not what was written (tampered with); copy or train anew.")
    for name in manifest["files"]:
        if not _FILE_NAME.fullmatch(name):
            raise BundleError(f"{place} it lists {name!r}, which is no plain file name.")
    return manifest
