"""S3 as it goes wrong: each error is met at a real server and says place, cause and remedy."""

import os
import socket
import threading
import time
from contextlib import contextmanager

import boto3
import pytest
from pyarrow.fs import FileSelector

from counterray.storage import MissingError, StorageError, resolve, upload
from counterray.storage_s3 import ATTEMPTS, connect
from tests.s3_server import ADMIN, READER

READING = {
    "read_bytes": lambda folder: (folder / "file").read_bytes(),
    "sha256": lambda folder: (folder / "file").sha256(),
    "size": lambda folder: (folder / "file").size(),
    "exists": lambda folder: (folder / "file").exists(),
    "files": lambda folder: folder.files(),
    "download": lambda folder: folder.download(os.devnull),
}
WRITING = {
    "write_bytes": lambda folder: (folder / "file").write_bytes(b"x"),
    "write_json": lambda folder: (folder / "file").write_json({}),
    "delete": lambda folder: (folder / "file").delete(),
}
ANY = READING | WRITING


@pytest.fixture
def bucket(make_bucket) -> str:
    """A bucket that holds ``folder/file``; the environment points at its server."""
    uri = make_bucket()
    (resolve(uri) / "folder/file").write_bytes(b"content")
    return uri


def set_key(monkeypatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("method", ANY)
def test_a_missing_bucket_is_named(bucket, s3_server, method):
    folder = resolve("s3://no-such-bucket/folder")
    with pytest.raises(StorageError, match=r"there is no bucket 'no-such-bucket' at the endpoint") as caught:
        ANY[method](folder)
    assert s3_server.endpoint in str(caught.value)
    assert "Create it, or check the name" in str(caught.value)
    assert not isinstance(caught.value, MissingError)  # callers take that for "not there yet"


@pytest.mark.parametrize("method", ANY)
def test_an_unknown_key_is_denied(bucket, monkeypatch, method):
    set_key(monkeypatch, "nobody", "nothing-secret")
    with pytest.raises(
        StorageError, match=r"access denied .* key is unknown.*Check AWS_ACCESS_KEY_ID"
    ) as caught:
        ANY[method](resolve(f"{bucket}/folder"))
    assert "nothing-secret" not in str(caught.value)


def test_a_wrong_secret_is_denied_and_not_shown(bucket, monkeypatch):
    set_key(monkeypatch, ADMIN[0], "mistyped-secret")
    with pytest.raises(StorageError, match="the secret does not fit the key") as caught:
        (resolve(bucket) / "x").write_bytes(b"")
    assert "mistyped-secret" not in str(caught.value)


def test_a_key_that_may_only_read(bucket, monkeypatch):
    set_key(monkeypatch, *READER)
    folder = resolve(f"{bucket}/folder")
    assert (folder / "file").read_bytes() == b"content"
    assert folder.files() == ["file"]
    with pytest.raises(StorageError, match=r"Could not write s3://\S+/new: access denied .* no permission"):
        (folder / "new").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"Could not delete .* access denied"):
        (folder / "file").delete()
    assert (folder / "file").read_bytes() == b"content"


def test_publishing_with_a_key_that_may_only_read(bucket, monkeypatch, tmp_path):
    set_key(monkeypatch, *READER)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match=r"Could not write \S+/new/manifest\.json: access denied"):
        upload(tmp_path, resolve(f"{bucket}/new"))


@pytest.mark.parametrize("method", ["read_bytes", "files", "write_bytes"])
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_wrong_endpoint_is_named_within_seconds(bucket, monkeypatch, method, variable):
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(variable, endpoint)
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"the endpoint {variable}={endpoint} does not answer"):
        ANY[method](resolve(f"{bucket}/folder"))
    assert time.monotonic() - began < 15


def test_a_host_that_does_not_exist(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid:9000")
    with pytest.raises(StorageError, match=r"storage\.invalid:9000 does not answer \(Could not resolve"):
        resolve(f"{bucket}/folder").files()


def test_an_endpoint_that_is_no_url(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost-without-scheme")
    with pytest.raises(StorageError, match=r"localhost-without-scheme\. Check AWS_ENDPOINT_URL"):
        resolve(bucket)


def test_no_credentials(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"no credentials for S3\. Set AWS_ACCESS_KEY_ID"):
        resolve(bucket)


def test_keys_endpoint_and_region_from_a_profile(bucket, s3_server, monkeypatch, tmp_path):
    for name in s3_server.environment():
        monkeypatch.delenv(name)
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(f"[site]\naws_access_key_id={ADMIN[0]}\naws_secret_access_key={ADMIN[1]}\n")
    config.write_text(f"[profile site]\nregion=eu-central-1\nendpoint_url={s3_server.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "site")
    folder = resolve(f"{bucket}/folder")
    assert (folder / "file").read_bytes() == b"content"
    (folder / "more").write_bytes(b"x")
    assert folder.files() == ["file", "more"]
    assert folder.filesystem.region == folder.client.meta.region_name == "eu-central-1"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StorageError, match=r"profile \(other\) could not be found"):
        resolve(bucket)


def test_a_session_token_reaches_both_clients(bucket, monkeypatch):
    """The server knows no such token and says so; without it the same key is admitted."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "made-up")
    folder = resolve(f"{bucket}/folder")
    with pytest.raises(StorageError, match="Could not list"):
        folder.files()
    with pytest.raises(StorageError, match="Could not write") as caught:
        (folder / "x").write_bytes(b"")
    assert "made-up" not in str(caught.value)


def test_aws_itself_is_addressed_by_host_name_and_others_by_path(bucket, monkeypatch):
    def url(client) -> str:
        return client.generate_presigned_url("get_object", Params={"Bucket": "site-data", "Key": "x"})

    custom = resolve(bucket).client
    assert url(custom).startswith(f"{custom.meta.endpoint_url}/site-data/x?")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    filesystem, client = connect()
    assert url(client).startswith("https://site-data.s3.eu-central-1.amazonaws.com/x?")
    assert filesystem.region == "eu-central-1"


def test_connections_are_made_once_for_each_setting(bucket, monkeypatch):
    first = resolve(bucket)
    assert resolve(f"{bucket}/other").client is first.client
    set_key(monkeypatch, *READER)
    assert resolve(bucket).client is not first.client


@contextmanager
def flaky_proxy(upstream: str, failures: list[bytes]):
    """A door to the real server that first gives away ``failures``, one a connection, and then lets through.

    Yields:
        Its URL.
    """
    host, port = upstream.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if failures:
                connection.recv(65536)
                connection.sendall(failures.pop(0))
                connection.close()
                continue
            server = socket.create_connection((host, int(port)))
            for pair in ((connection, server), (server, connection)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ncon"


@pytest.mark.parametrize("method", ["read_bytes", "sha256", "files", "write_bytes", "delete"])
def test_a_busy_server_is_tried_again(bucket, s3_server, monkeypatch, method):
    failures = [BUSY, BUSY]
    with flaky_proxy(s3_server.endpoint, failures) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        ANY[method](resolve(f"{bucket}/folder"))
    assert not failures


def test_a_server_that_stays_busy_is_given_up(bucket, s3_server, monkeypatch):
    failures = [BUSY] * 20
    with flaky_proxy(s3_server.endpoint, failures) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match=r"Could not write .* \(503\)"):
            (resolve(bucket) / "x").write_bytes(b"")
    assert len(failures) == 20 - ATTEMPTS


def test_a_read_that_is_cut_off_starts_anew(bucket, s3_server, monkeypatch):
    failures = [CUT, CUT]
    with flaky_proxy(s3_server.endpoint, failures) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert (resolve(bucket) / "folder/file").read_bytes() == b"content"
    assert not failures


def test_a_read_that_is_always_cut_off_is_no_content(bucket, s3_server, monkeypatch):
    with flaky_proxy(s3_server.endpoint, [CUT] * 20) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match="broke off its answer every time"):
            (resolve(bucket) / "folder/file").read_bytes()


def test_the_filesystem_serves_other_libraries(bucket):
    """Ray Data lists by it, without our methods."""
    place = resolve(f"{bucket}/folder")
    infos = place.filesystem.get_file_info(FileSelector(place.path))
    assert [(info.base_name, info.size) for info in infos] == [("file", 7)]


def test_objects_are_where_other_clients_expect_them(bucket):
    (resolve(f"{bucket}/a/b") / "c").write_bytes(b"x")
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    assert [entry["Key"] for entry in listed] == ["a/b/c", "folder/file"]
