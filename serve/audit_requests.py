"""What a request for an audit may name, and the command that runs it."""

from __future__ import annotations

import os
import shlex
import sys

from counterray.bundle import MANIFEST, BundleError, read_manifest
from counterray.storage import Location, resolve
from serve.problems import ProblemError
from serve.schemas import AuditRequest
from serve.settings import Settings

EXACT = "exact"
"""In a generator's place: the phantom's own causal model."""


def require_admissible(request: AuditRequest, settings: Settings) -> None:
    """Refuses what a job could not, or should not, read: what is missing, outside the roots, or code.

    Raises:
        ProblemError: ``audit-refused`` or ``unknown-model``, with the field and its value.
        StorageError: If storage cannot be used.
    """
    roots = settings.audits.roots
    for classifier in request.classifiers:
        _require_classifier(classifier, roots)
    if not (_require_below("data", request.data, roots) / "manifest.json").is_file():
        raise ProblemError("audit-refused", f"data: {request.data!r} is no dataset of an ingest.")
    if request.generator != EXACT and request.generator not in settings.models:
        raise ProblemError("unknown-model", f"generator = {request.generator!r}.")


def command_of(request: AuditRequest, settings: Settings, out: Location, *, joins: str) -> str:
    """The command line of the job ``audit``.

    Args:
        request: What is asked for.
        settings: The server's.
        out: Folder of the results.
        joins: Address of the Ray that it runs in; empty for the one that runs the job.
    """
    model = request.generator
    generator = model if model == EXACT else settings.models[model].bundle
    words = [sys.executable, "-m", "jobs", "audit", "--generator", generator, "--data", request.data]
    words += ["--out", out.uri]
    words += ["--address", joins] if joins else []
    words += [word for name in request.classifiers for word in ("--classifier", name)]
    words += [word for name in request.attributes for word in ("--attribute", name)]
    if model != EXACT:
        words += [word for uri in settings.judges for word in ("--judge", uri)]
    asked = dict(settings.audits.settings) | ({"studies": request.studies} if request.studies else {})
    words += [word for name, value in asked.items() for word in ("--set", f"{name}={value}")]
    return shlex.join(words)


def _require_classifier(address: str, roots: tuple[str, ...]) -> None:
    """Only a bundle or an ONNX file, below a root: no code, no pickle, nothing from the network."""
    place = _require_below("classifiers", address, roots)
    if address.endswith(".onnx"):
        if not place.is_file():
            raise ProblemError("audit-refused", f"classifiers: there is no file {address!r}.")
        return
    said = f"classifiers: {address!r} is neither a bundle nor an .onnx file."
    if not (place / MANIFEST).is_file():
        raise ProblemError("audit-refused", said)
    try:
        read_manifest(place)
    except BundleError:
        raise ProblemError("audit-refused", said) from None


def _require_below(what: str, address: str, roots: tuple[str, ...]) -> Location:
    scheme = address.partition("://")[0] if "://" in address else ""
    plain = address.isprintable() and not any(part in (".", "..") for part in address.split("/"))
    if scheme not in ("", "s3") or not plain:
        raise ProblemError("audit-refused", f"{what}: {address!r} is no plain path or s3:// URI.")
    inside = address if scheme else os.path.realpath(os.path.expanduser(address))
    for root in roots:
        outside = root if "://" in root else os.path.realpath(root)
        if inside.startswith(outside.rstrip("/") + "/"):
            return resolve(address)
    raise ProblemError("audit-refused", f"{what}: {address!r} is not below one of the server's roots.")
