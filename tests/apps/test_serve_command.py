"""``python -m jobs serve`` as a user runs it, with models in object storage that goes away and comes back."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest
import yaml

from counterray.storage import resolve
from tests.cluster.commands import own_ray
from tests.conftest import ROOT
from tests.s3_server import serve as s3
from tests.serve_world import file_of, form_of, radiograph, write_models

pytestmark = pytest.mark.cluster

PICTURE = file_of(radiograph())
START_SECONDS = 180


@pytest.fixture
def local(tmp_path):
    """Bundles on disk, and settings that name them."""
    return tmp_path / "models", write_models(tmp_path / "models")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def upload(folder, uri):
    for path in folder.rglob("*"):
        if path.is_file():
            (resolve(uri) / str(path.relative_to(folder))).write_bytes(path.read_bytes())


@contextmanager
def serving(config, environment):
    """The command, once it has printed its URL and key; ended as by Ctrl-C."""
    line = [sys.executable, "-m", "jobs", "serve", "--config", str(config), "--port", str(free_port())]
    process = subprocess.Popen(
        line, cwd=ROOT, env=own_ray(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C" not in (text := "".join(said)):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        url, key = re.search(r"API: (\S+)", text)[1], re.search(r"key: (\S+)", text)[1]
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90) as client:
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        reader.join(10)
        assert said[-1] == "ended\n"
        assert "Traceback" not in "".join(said)
    finally:
        process.kill()
        process.wait(60)
        reader.join(10)
        process.stdout.close()


def test_models_go_on_while_storage_is_away_and_others_come_with_it(local, tmp_path, monkeypatch):
    folder, plain = local
    port, objects, uri = free_port(), tmp_path / "objects", "s3://models"
    text = yaml.safe_dump({**plain, "keys": str(tmp_path / "keys" / "keys.json")}).replace(str(folder), uri)
    deployments = [
        {"name": name, "num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
        for name in ("gateway", "generator-main")
    ]
    application = {"name": "counterray", "route_prefix": "/", "import_path": "serve.gateway:build"}
    application |= {"args": yaml.safe_load(text), "deployments": deployments}
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"applications": [application]}))

    def ask(client, model, **given):
        return client.post("/v1/counterfactuals", **form_of(PICTURE, model=model, observed={}, **given))

    def words(client):
        return ask(client, "words", prompt="Severe cardiomegaly.")

    def attributes(client):
        return ask(client, "attributes", do={"sex": "male"})

    with s3(objects, port) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.make_bucket("models")
        upload(folder, uri)
        opened = serving(config, server.environment())
        client = opened.__enter__()
        first = words(client)
        assert first.status_code == 200, first.text
    again, refused = words(client), attributes(client)
    assert again.json()["images"] == first.json()["images"]
    assert refused.status_code == 503, refused.text
    assert refused.json()["type"] == "/problems/unavailable"
    assert refused.headers["retry-after"]
    with s3(objects, port):
        deadline = time.monotonic() + 60
        while (answer := attributes(client)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(1)
        assert answer.status_code == 200, answer.text
    opened.__exit__(None, None, None)
