"""One way to folders and objects, on a local disk or in an S3 bucket at any endpoint."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem


class StorageError(OSError):
    """Storage could not be used; the message names the place, the cause and the remedy."""


@dataclass(frozen=True)
class Location:
    """A file or folder.

    Attributes:
        uri: Absolute local path, or ``s3://bucket/prefix``.
        filesystem: The pyarrow filesystem, as Ray Data and Ray Train take it.
        path: The path inside ``filesystem``, without scheme.
    """

    uri: str
    filesystem: FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether this is on a local disk."""
        return isinstance(self.filesystem, LocalFileSystem)

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri}/{name}", self.filesystem, f"{self.path}/{name}")

    def exists(self) -> bool:
        """Whether a file or a non-empty folder is here."""
        return self.filesystem.get_file_info(self.path).type != FileType.NotFound

    def read_bytes(self) -> bytes:
        """The file's content."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def write_bytes(self, data: bytes) -> None:
        """Writes the file whole or not at all: readers see the old content or the new."""
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def read_json(self) -> Any:
        """The file's content, read as JSON."""
        return json.loads(self.read_bytes())

    def write_json(self, value: Any) -> None:
        """Writes ``value`` as JSON with sorted keys, whole or not at all."""
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def files(self) -> Iterator[str]:
        """Names of all files below this folder, relative to it, sorted."""
        selector = FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        yield from sorted(
            posixpath.relpath(info.path, self.path) for info in infos if info.type == FileType.File
        )

    def sha256(self) -> str:
        """Checksum of the file's content, read in pieces."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def delete(self) -> None:
        """Deletes the file or the whole folder; nothing happens where there is none."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == FileType.File:
            self.filesystem.delete_file(self.path)

    def download(self, folder: Path) -> Path:
        """Copies the folder's files to a local folder and returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(self.path, str(folder), source_filesystem=self.filesystem)
        return folder


def resolve(uri: str | Path) -> Location:
    """Turns a local path or ``s3://bucket/prefix`` into a `Location`.

    Endpoint, region, keys and profile of S3 come from the usual AWS variables and files, through boto3.
    """
    text = str(uri)
    if text.startswith("s3://"):
        path = text.removeprefix("s3://").rstrip("/")
        return Location(f"s3://{path}", _s3_filesystem(), path)
    absolute = str(Path(text).expanduser().absolute())
    return Location(absolute, LocalFileSystem(), absolute)


def _s3_filesystem() -> S3FileSystem:
    session = boto3.Session()
    client = session.client("s3")
    credentials = session.get_credentials()
    frozen = credentials.get_frozen_credentials() if credentials else None
    return S3FileSystem(
        access_key=frozen.access_key if frozen else None,
        secret_key=frozen.secret_key if frozen else None,
        session_token=frozen.token if frozen else None,
        region=client.meta.region_name,
        endpoint_override=client.meta.endpoint_url,
        allow_bucket_creation=False,
    )
