"""One way to folders and objects, on a local disk or in an S3 bucket at any endpoint."""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow.fs
from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from counterray.storage_errors import FULL_DISK, MissingError, StorageError, translate
from counterray.storage_s3 import connect, read_object

__all__ = ["Location", "MissingError", "StorageError", "publish", "resolve", "upload"]

_PARTIAL = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{32}\.partial(/|$)")
"""Names of files and folders that are still being written, or whose writer was killed."""


@dataclass(frozen=True)
class Location:
    """A file or folder; made by `resolve`.

    It pickles as its URI alone, so no credentials travel: who unpickles it uses their own environment.
    Every method raises `StorageError`, and nothing else, when storage cannot be used; `MissingError` where
    there is no such file.

    Attributes:
        uri: Absolute local path, or ``s3://bucket/prefix``.
        filesystem: The pyarrow filesystem, as Ray Data and Ray Train take it.
        path: The path inside ``filesystem``, without scheme.
        client: The boto3 client that writes to S3; ``None`` on a local disk.
    """

    uri: str
    filesystem: FileSystem
    path: str
    client: Any = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve, (self.uri,)

    @property
    def is_local(self) -> bool:
        """Whether this is on a local disk."""
        return isinstance(self.filesystem, LocalFileSystem)

    def __truediv__(self, name: str) -> Location:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{name!r} is no name below {self.uri}: it must be relative, without '..'.")
        uri, path = (f"{base.rstrip('/')}/{name}" for base in (self.uri, self.path))
        return Location(uri, self.filesystem, path, self.client)

    def exists(self) -> bool:
        """Whether a file or a folder is here; a missing bucket is an error."""
        with self._translated("look up"):
            return bool(self._kind() != FileType.NotFound)

    def is_file(self) -> bool:
        """Whether a file, rather than a folder or nothing, is here; a missing bucket is an error."""
        with self._translated("look up"):
            return bool(self._kind() == FileType.File)

    def size(self) -> int:
        """Size of the file, in bytes."""
        with self._translated("read"):
            info = self.filesystem.get_file_info(self.path)
            if info.type != FileType.File:
                raise FileNotFoundError(self.path)
            return int(info.size)

    def read_bytes(self) -> bytes:
        """The file's content."""
        with self._translated("read"):
            if self.client is None:
                return Path(self.path).read_bytes()
            return read_object(self.client, *self._bucket_and_key())

    def write_bytes(self, data: bytes) -> None:
        """Writes the file whole or not at all: readers see the old content or the new."""
        with self._translated("write"):
            if self.client is None:
                _write_local(Path(self.path), io.BytesIO(data))
            else:
                # Not pyarrow's stream: it publishes what it has when the writing is broken off, and cannot
                # be told not to (apache/arrow#40502).
                bucket, key = self._bucket_and_key()
                self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def write_file(self, file: Path) -> None:
        """Copies a local file here, whole or not at all, without holding it in memory."""
        with self._translated("write"):
            if self.client is None:
                with file.open("rb") as content:
                    _write_local(Path(self.path), content)
            else:
                self.client.upload_file(str(file), *self._bucket_and_key())

    def read_json(self) -> Any:
        """The file's content, read as JSON."""
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise StorageError(f"{self.uri} is not valid JSON: {error}") from None

    def write_json(self, value: Any) -> None:
        """Writes ``value`` as JSON with sorted keys, whole or not at all."""
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def files(self) -> list[str]:
        """Names of all files below this folder, relative to it, sorted; without those half written."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Sizes [bytes] of all files below this folder, by name as in `files`."""
        with self._translated("list"):
            selector = FileSelector(self.path, recursive=True, allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
            if not infos:
                self._check_bucket()
        found = {
            posixpath.relpath(info.path, self.path): info for info in infos if info.type == FileType.File
        }
        return {name: int(found[name].size) for name in sorted(found) if not _PARTIAL.search(name)}

    def names(self) -> list[str]:
        """Names of the files and folders right in this folder, sorted; without those half written."""
        with self._translated("list"):
            infos = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
            if not infos:
                self._check_bucket()
        return sorted(info.base_name for info in infos if not _PARTIAL.search(info.base_name))

    def sha256(self) -> str:
        """Checksum of the file's content, read in pieces."""
        digest = hashlib.sha256()
        # Without compression=None pyarrow would unpack what is called .gz.
        with (
            self._translated("read"),
            self.filesystem.open_input_stream(self.path, compression=None) as stream,
        ):
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def delete(self) -> None:
        """Deletes the file or the whole folder; nothing happens where there is none."""
        with self._translated("delete"):
            kind = self._kind()
            if kind == FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == FileType.File:
                self.filesystem.delete_file(self.path)

    def download(self, folder: Path) -> Path:
        """Copies the folder's files to a local folder and returns it."""
        with self._translated("download"):
            if self._kind() != FileType.Directory:
                raise FileNotFoundError(self.path)
            folder.mkdir(parents=True, exist_ok=True)
            pyarrow.fs.copy_files(self.path, str(folder), source_filesystem=self.filesystem)
        return folder

    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return bucket, key

    def _kind(self) -> FileType:
        kind = self.filesystem.get_file_info(self.path).type
        if kind == FileType.NotFound:
            self._check_bucket()
        return kind

    def _check_bucket(self) -> None:
        """Pyarrow reports what is in a missing bucket as merely absent; boto3 tells."""
        if self.client is not None:
            self.client.head_bucket(Bucket=self._bucket_and_key()[0])

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turns what the libraries raise into a `StorageError`."""
        try:
            yield
        except StorageError:
            raise
        except (OSError, ArrowException, BotoCoreError, Boto3Error, ClientError) as error:
            cause: BaseException = error
            if isinstance(error, S3UploadFailedError):
                cause = error.__context__ or error
            if isinstance(error, FileNotFoundError):
                try:
                    self._check_bucket()
                except (BotoCoreError, ClientError) as bucket_error:
                    cause = bucket_error
            endpoint = self.client.meta.endpoint_url if self.client is not None else None
            raise translate(doing, self.uri, cause, endpoint=endpoint) from error


def resolve(uri: str | Path) -> Location:
    """Turns a local path, ``file://`` or ``s3://bucket/prefix`` into a `Location`, without reaching out.

    Endpoint, region, keys and profile of S3 come from the usual AWS variables and files, through boto3.

    Raises:
        StorageError: If the scheme is unknown, no bucket is named, or the S3 settings are incomplete.
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if text.startswith("s3:/") and not separator:
        raise StorageError(f"{text!r} lost a slash, as pathlib does it: pass s3:// URIs as text.")
    if not separator:
        absolute = os.path.abspath(os.path.expanduser(text))
        return Location(absolute, LocalFileSystem(), absolute)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"{text!r} names the host {parts.netloc!r}; a local path is file:///folder.")
        return resolve(unquote(parts.path))
    if scheme != "s3":
        raise StorageError(
            f"{text!r}: the scheme {scheme!r} is unknown; use a local path or s3://bucket/prefix."
        )
    path = "/".join(part for part in rest.split("/") if part)
    if not path or rest.startswith("/"):
        raise StorageError(f"{text!r} names no bucket; s3://bucket/prefix is needed.")
    filesystem, client = connect()
    return Location(f"s3://{path}", filesystem, path, client)


def upload(folder: Path, location: Location, *, last: str = "manifest.json") -> None:
    """Publishes a local folder, replacing one that was published there before.

    A local folder appears in one piece, by renaming. In a bucket the file ``last`` makes the folder whole: it
    is deleted first and written last, so a reader that starts from it never meets a mixture.

    Args:
        folder: The local folder; left as it is.
        location: Where it goes.
        last: Name of the file without which the folder does not count.

    Raises:
        StorageError: If ``last`` is not in the folder, other files are in its place, or storage cannot be
            used.
    """
    if not (folder / last).is_file():
        raise StorageError(f"{folder} cannot be published: it has no {last}.")
    if location.client is None:
        with publish(location, last=last) as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True)
        return
    replaced = set(location.files())
    if last in replaced:
        (location / last).delete()
    names = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    for stale in sorted(replaced - set(names)) if last in replaced else []:
        (location / stale).delete()
    for name in [*(name for name in names if name != last), last]:
        (location / name).write_file(folder / name)


@contextmanager
def publish(location: Location, *, last: str = "manifest.json") -> Iterator[Path]:
    """Gives an empty local folder to fill; when the block ends well, it is published as `upload` does it.

    When the block raises, nothing is published and what was there stays.

    Raises:
        StorageError: If ``last`` is missing in the end, other files are in the folder's place, the disk is
            full, or storage cannot be used.
    """
    if location.client is not None:
        with tempfile.TemporaryDirectory(prefix="counterray-") as scratch:
            with _full_disk_explained(Path(scratch)):
                yield Path(scratch)
            upload(Path(scratch), location, last=last)
        return
    target = Path(location.path)
    staging, aside = _partial(target), _partial(target)
    try:
        with location._translated("write"):
            if target.is_dir() and any(target.iterdir()) and not (target / last).is_file():
                raise StorageError(f"{location.uri} holds other files; choose a new or empty folder.")
            staging.mkdir(parents=True)
        with _full_disk_explained(target):
            yield staging
        if not (staging / last).is_file():
            raise StorageError(f"{location.uri} cannot be published: it has no {last}.")
        with location._translated("write"):
            if target.exists():
                target.rename(aside)
            try:
                staging.rename(target)
            except OSError:
                if aside.exists():
                    aside.rename(target)
                raise
    finally:
        for leftover in (staging, aside):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _full_disk_explained(place: Path) -> Iterator[None]:
    """Other errors in a caller's block are the caller's own and pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise translate("write", str(place), error) from error
        raise


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")


def _write_local(target: Path, content: BinaryIO) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(target)
    try:
        with temporary.open("wb") as stream:
            shutil.copyfileobj(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
