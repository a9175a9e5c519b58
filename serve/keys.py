"""Bearer keys: 256 random bits each, of which the server keeps a hash."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from counterray.config import ConfigError
from counterray.storage import Location, MissingError, resolve

VARIABLE = "COUNTERRAY_SERVE_KEYS"
"""Environment variable with keys in place of the file: ``name=hash``, several joined by commas."""

PREFIX = "counterray_"
"""How every key begins, so that scanners of leaked secrets can tell one."""


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """SHA-256 of a key, in hexadecimal.

    One round is enough: slow hashes are for passwords, which can be tried; 256 random bits cannot.
    """
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Keyring:
    """The keys that a server knows.

    Attributes:
        owners: Hash of a key to the name of its owner.
        file: Where they were read from; empty for the environment, which stays as it is.
    """

    owners: Mapping[str, str]
    file: str = ""

    @classmethod
    def read(cls, file: str) -> Keyring:
        """The keys of the environment variable `VARIABLE`, or else of a file, ``{name: hash}`` as JSON.

        Args:
            file: Local path or ``s3://`` URI.

        Raises:
            ConfigError: If there is no key, or one is no hash.
            StorageError: If the file cannot be read.
        """
        given = os.environ.get(VARIABLE, "")
        if given:
            pairs = [part.partition("=") for part in given.split(",")]
            owners = _owners({name.strip(): value.strip() for name, _, value in pairs}, VARIABLE)
            ring = cls(owners)
        else:
            ring = cls(_owners(_stored(resolve(file)), file), file)
        if not ring.owners:
            place = ring.file or VARIABLE
            raise ConfigError(f"There is no key in {place}. Make one: python -m jobs serve --new-key <name>.")
        return ring

    def refresh(self) -> None:
        """Reads the file anew: what it holds now is valid from now on, and where it is gone, no key is.

        Raises:
            ConfigError: If it is no file of keys; those of before stay valid.
            StorageError: If it cannot be read; those of before stay valid.
        """
        if self.file:
            self.owners = _owners(_stored(resolve(self.file)), self.file)

    def owner(self, authorization: str) -> str | None:
        """Who sent a header ``Authorization``; ``None`` for nobody that is known.

        The look-up is by hash: how long it takes says nothing of the keys.
        """
        scheme, _, key = authorization.partition(" ")
        return self.owners.get(hashed(key.strip())) if scheme.lower() == "bearer" else None


def add_key(file: str, name: str) -> str:
    """Makes a key, adds its hash to the file under ``name`` and returns it; a former key of that name ends.

    Raises:
        StorageError: If the file cannot be read or written.
    """
    place, key = resolve(file), new_key()
    write_private(place, json.dumps({**_stored(place), name: hashed(key)}, indent=2) + "\n")
    return key


def write_private(place: Location, text: str) -> None:
    """Writes a file that, on a local disk, nobody else may read.

    Raises:
        StorageError: If it cannot be written.
    """
    if place.is_local:
        path = Path(place.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    place.write_bytes(text.encode())
    if place.is_local:
        Path(place.path).chmod(0o600)


def _owners(hashes: Mapping[str, str], place: str) -> dict[str, str]:
    for name, value in hashes.items():
        if not name or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise ConfigError(f"{place}: the key of {name!r} is no SHA-256 in hexadecimal.")
    return {value: name for name, value in hashes.items()}


def _stored(place: Location) -> dict[str, str]:
    try:
        found = place.read_json()
    except MissingError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigError(f"{place.uri} is no file of keys, which is JSON such as {{name: hash}}.")
    return dict(found)
