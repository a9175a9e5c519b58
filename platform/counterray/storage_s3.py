"""The S3 clients for the AWS settings of this process."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError, NoCredentialsError
from pyarrow import ArrowException
from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

from counterray.storage_errors import BROKEN_OFF, translate

logger = logging.getLogger(__name__)

ATTEMPTS = 4
"""How often a request is tried; the waits between grow up to 1, 2 and 4 s, at random."""

CONNECT_SECONDS = 3
READ_SECONDS = 30

DEFAULT_REGION = "us-east-1"
"""What endpoints other than AWS's own expect as well, when nothing is set."""

_RENEWED_BY_PYARROW = frozenset({"assume-role-with-web-identity", "container-role", "iam-role", "sso"})
"""Expiring credentials, by boto3's name, that pyarrow's AWS library can find and renew by itself."""


def connect() -> tuple[S3FileSystem, Any]:
    """The filesystem that reads and the boto3 client that writes; made once for each set of AWS variables.

    Nothing is sent to the endpoint. A custom endpoint is addressed by path (``endpoint/bucket``), as servers
    without a wildcard name need it; AWS itself by host name (``bucket.endpoint``), as it demands.

    Raises:
        StorageError: If the settings are incomplete or make no sense.
    """
    return _connect(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))


@functools.lru_cache(maxsize=8)
def _connect(variables: frozenset[tuple[str, str]]) -> tuple[S3FileSystem, Any]:
    settings = dict(variables)
    endpoint = settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL")
    try:
        session: Any = boto3.Session()
        region = session.region_name or DEFAULT_REGION
        endpoint = session.client("s3", region).meta.endpoint_url
        is_custom = endpoint != _standard_endpoint(session, region)
        client = session.client(
            "s3",
            region,
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                s3={"addressing_style": "path" if is_custom else "virtual"},
            ),
        )
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        # Keys that we hand over are never renewed, and a training outlives the keys of a role.
        renewed = isinstance(credentials, RefreshableCredentials) and (
            credentials.method in _RENEWED_BY_PYARROW
        )
        keys = None if renewed else credentials.get_frozen_credentials()
        filesystem = S3FileSystem(
            access_key=keys and keys.access_key,
            secret_key=keys and keys.secret_key,
            session_token=keys and keys.token,
            region=region,
            endpoint_override=endpoint if is_custom else None,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            tls_ca_file_path=settings.get("AWS_CA_BUNDLE"),
            allow_bucket_creation=False,
        )
    except (OSError, ValueError, BotoCoreError, ArrowException) as error:
        raise translate("set up", "S3", error, endpoint=endpoint) from error
    return filesystem, client


def read_object(client: Any, bucket: str, key: str) -> bytes:
    """An object's content, by one request.

    Pyarrow reads by several, and would join pieces of two objects when one is replaced in between.
    """
    for attempt in range(ATTEMPTS):
        try:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        except BROKEN_OFF as error:  # boto3 itself retries only until the answer begins
            if attempt == ATTEMPTS - 1:
                raise
            logger.warning("Reading an object broke off (%s); trying again.", type(error).__name__)
            time.sleep(random.uniform(0, 2**attempt))
    raise AssertionError("the last attempt returns or raises")


def _standard_endpoint(session: Any, region: str) -> str:
    options: dict[str, Any] = {"ignore_configured_endpoint_urls": True}
    return str(session.client("s3", region, config=Config(**options)).meta.endpoint_url)
