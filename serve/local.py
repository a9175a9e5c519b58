"""A server on this machine: a local Ray that is given the same Serve config file as a cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray.cluster_utils import Cluster
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

import counterray
from counterray.config import ConfigError, read, validate
from counterray.storage import Location, resolve
from serve.keys import VARIABLE, add_key, write_private
from serve.settings import Settings

START_SECONDS = 300.0
"""How long a server may take to start; networks are imported, not loaded."""

OWNER = "local"
"""Name of the key that the first start makes."""

OBJECT_STORE_BYTES = 512 << 20


def read_deployment(path: Path, overrides: Sequence[str], *, port: int | None = None) -> dict[str, Any]:
    """A Serve config file, its places made absolute: replicas run in folders of their own.

    Args:
        path: The file, of one application.
        overrides: Assignments ``a.b=c`` to the application's settings.
        port: Where to listen, in place of the file's.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    config = read(path)
    applications = config.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        raise ConfigError(f"{path} is no Serve config file with one application; see serve/configs.")
    arguments = read(None, overrides)
    settings = validate(Settings, _merged(applications[0].get("args", {}), arguments))
    http = {"host": "127.0.0.1", "port": 8000, **config.get("http_options", {})}
    http |= {} if port is None else {"port": port}
    application = {**applications[0], "args": _absolute(settings)}
    return {**config, "http_options": http, "applications": [application]}


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings of a config that `read_deployment` read."""
    return Settings.model_validate(config["applications"][0]["args"])


def first_key(settings: Settings) -> Path:
    """The file with this machine's own key, which is made, with its hash, where there is no key yet.

    Raises:
        ConfigError: If keys come from elsewhere, and this machine has none.
        StorageError: If a file cannot be written.
    """
    if not resolve(settings.keys).exists() and not os.environ.get(VARIABLE):
        named_key(settings, OWNER)
    return Path(_key_file(settings).path)


def named_key(settings: Settings, name: str) -> str:
    """Makes a key under a name, whose former key ends; this machine's own is also kept in its file.

    Raises:
        StorageError: If a file cannot be written.
    """
    key = add_key(settings.keys, name)
    if name == OWNER:
        write_private(_key_file(settings), key + "\n")
    return key


def _key_file(settings: Settings) -> Location:
    return resolve(resolve(settings.keys).uri.rpartition("/")[0]) / "key"


@dataclass(frozen=True)
class LocalServer:
    """A server that runs.

    Attributes:
        url: Where it answers.
        cluster: Its Ray.
    """

    url: str
    cluster: Cluster

    @classmethod
    def start(cls, config: Mapping[str, Any]) -> LocalServer:
        """Starts a local Ray and the server in it, and returns once the server answers.

        Raises:
            ConfigError: If the server does not start, with what Serve says.
        """
        host, port = config["http_options"]["host"], config["http_options"]["port"]
        _require_free(host, port)
        library, checkout = Path(counterray.__file__).parents[1], Path(__file__).parents[1]
        # Replicas are started by Serve, not by this process: they find the code by their environment alone.
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (library, checkout)))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # As `ray.init` does for a Ray of its own: whoever may submit jobs here runs code as this user.
        logging.getLogger(enable_token_auth_by_default.__module__).setLevel(logging.ERROR)  # that it is on
        enable_token_auth_by_default()
        ensure_token_if_auth_enabled()
        cluster = _ray()
        try:
            client = ServeSubmissionClient(f"http://{cluster.webui_url}")
            client.deploy_applications(dict(config))
            _wait(client)
        except BaseException:
            cls("", cluster).stop()
            raise
        return cls(f"http://{host}:{port}", cluster)

    def stop(self) -> None:
        """Ends the server and its Ray; audits that run go on with the next start."""
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


def _ray() -> Cluster:
    """A Ray of this machine, beside others that may run here, which this process has joined."""
    head = {
        "num_cpus": max(2, os.cpu_count() or 2),
        "include_dashboard": True,
        "object_store_memory": OBJECT_STORE_BYTES,
        # Another Ray may have the usual ports, which are one for the whole machine. Audits are submitted to
        # the node's agent, which runs without its port where it is taken: `ray.init` cannot name another.
        "dashboard_port": _free_port(),
        "dashboard_agent_listen_port": _free_port(),
    }
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises no kind of its own where one of its processes does not start.
        raise ConfigError(
            f"Ray did not start: {error} Its processes have some seconds each to start; try again when less "
            "runs on this machine."
        ) from error
    return cluster


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _require_free(host: str, port: int) -> None:
    """Refuses a port that another server has: Serve would share it, and each get some of the requests."""
    with socket.socket() as probe:
        # As servers do that follow one which has just ended; this does not share a port that is listened on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"http_options: {host}:{port} cannot be used ({error.strerror}). End the server that has it, "
                "or take another port with --port."
            ) from error


def _wait(client: ServeSubmissionClient) -> None:
    deadline = time.monotonic() + START_SECONDS
    said = "nothing yet"
    while time.monotonic() < deadline:
        for application in client.get_serve_details().get("applications", {}).values():
            said = f"{application['status']}: {application['message']}"
            if application["status"] == "RUNNING":
                return
            if application["status"] == "DEPLOY_FAILED":
                raise ConfigError(f"The server did not start: {application['message']}")
        time.sleep(0.5)
    raise ConfigError(f"The server did not start within {START_SECONDS:g} s; Serve says {said}")


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with those of ``over`` in their places."""
    merged = dict(values)
    for name, value in over.items():
        there = merged.get(name)
        both = isinstance(there, dict) and isinstance(value, dict)
        merged[name] = _merged(there, value) if both else value  # type: ignore[arg-type]
    return merged


def _absolute(settings: Settings) -> dict[str, Any]:
    def place(text: str) -> str:
        return resolve(text).uri if text else ""

    plain = settings.model_dump(mode="json")
    for model in plain["models"].values():
        model |= {name: place(model[name]) for name in ("bundle", "data")}
    plain |= {"judges": [place(uri) for uri in settings.judges], "keys": place(settings.keys)}
    audits = settings.audits
    plain["audits"] |= {"roots": [place(root) for root in audits.roots], "out": place(audits.out)}
    if settings.samples is not None:
        plain["samples"]["data"] = place(settings.samples.data)
    return plain
