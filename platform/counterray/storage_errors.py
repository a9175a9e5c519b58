"""What storage raises, in words: the place, the cause and the remedy."""

from __future__ import annotations

import errno
import os
import re
from urllib.parse import urlsplit

from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as S3ConnectionError

_DENIED = {
    "AccessDenied": "the key has no permission for this",
    "Forbidden": "the key is unknown, its secret is wrong, or it has no permission for this",
    "InvalidAccessKeyId": "the key is unknown",
    "SignatureDoesNotMatch": "the secret does not fit the key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
}
"""Error code of S3 to its meaning."""

_SAME_CODE = {"403": "Forbidden", "404": "NotFound", "NetworkConnection": "Connection"}
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors when a file does not fit."""

BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
"""What boto3 raises when an answer begins and does not end."""

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_CURL_CAUSE = re.compile(r"curlCode: \d+, ([^;]+)")
_PYARROW_CODE = re.compile(r"AWS Error ([A-Z_]+) during (\w+) operation")


class StorageError(OSError):
    """Storage could not be used; the message names the place, the cause and the remedy."""


class MissingError(StorageError, FileNotFoundError):
    """There is no such file or folder, while storage itself answers."""


def translate(doing: str, uri: str, error: BaseException, *, endpoint: str | None = None) -> StorageError:
    """Puts what the libraries raise into words, without keys or secrets.

    Args:
        doing: What failed, as a verb, such as ``write``.
        uri: The place.
        error: What pyarrow, boto3 or the system raised.
        endpoint: URL of the S3 endpoint; ``None`` on a local disk.
    """
    start = f"Could not {doing} {uri}: "
    code = _s3_code(error)
    if isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "NotFound"):
        return MissingError(f"{start}there is no such file or folder.")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StorageError(
            f"{start}the disk is full or a quota is used up ({os.strerror(error.errno or 0)}). "
            "What was there before is unchanged. Free some space or choose another place."
        )
    if isinstance(error, OSError) and error.errno in _READ_ONLY:
        return StorageError(
            f"{start}the folder or file does not permit it ({os.strerror(error.errno or 0)}). "
            "Change its permissions or choose another place."
        )
    if code == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return StorageError(
            f"{start}there is no bucket {bucket!r} at {_name(endpoint)}. Create it, or check the name."
        )
    if code in _DENIED:
        return StorageError(
            f"{start}access denied by {_name(endpoint)} ({code}: {_DENIED[code]}). "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE, and what "
            "they may do."
        )
    if isinstance(error, BROKEN_OFF):
        return StorageError(
            f"{start}{_name(endpoint)} broke off its answer every time. Check it and the network."
        )
    if code == "Connection":
        return StorageError(
            f"{start}{_name(endpoint)} does not answer ({_network_cause(error)}). "
            "Check AWS_ENDPOINT_URL and the network."
        )
    if code == "NoCredentials":
        return StorageError(
            f"{start}there are no credentials for S3. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or run where the machine has a role."
        )
    if isinstance(error, ValueError) and endpoint is not None:
        return StorageError(f"{start}{error}. Check AWS_ENDPOINT_URL.")
    return StorageError(f"{start}{error}")


def _s3_code(error: BaseException) -> str:
    """The error code as S3 spells it; pyarrow's are in capitals, in the text."""
    if isinstance(error, NoCredentialsError):
        return "NoCredentials"
    if isinstance(error, HTTPClientError | S3ConnectionError):
        return "Connection"
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NotFound") and error.operation_name == "HeadBucket":
            return "NoSuchBucket"
    else:
        match = _PYARROW_CODE.search(str(error))
        code = match[1].title().replace("_", "") if match else ""
        # A HEAD request has no body, so "access denied" is all that pyarrow knows of a 403.
        if match and code == "AccessDenied" and match[2].startswith("Head"):
            return "Forbidden"
    return _SAME_CODE.get(code, code)


def _network_cause(error: BaseException) -> str:
    """Whether it is the name, the connection or the certificate; without the URL, which is named already."""
    match = _CURL_CAUSE.search(str(error))
    return match[1] if match else type(error).__name__


def _name(endpoint: str | None) -> str:
    """The endpoint for a message: its setting, and its value without user and password."""
    if endpoint is None:
        return "S3"
    parts = urlsplit(endpoint)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(variable) == endpoint:
            return f"the endpoint {variable}={shown}"
    return f"the endpoint {shown}"
