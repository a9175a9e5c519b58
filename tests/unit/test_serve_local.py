"""A server on one machine: its config file with absolute places, its key, its port."""

import socket
from pathlib import Path

import pytest

from counterray.config import ConfigError
from serve.keys import Keyring
from serve.local import LocalServer, first_key, named_key, read_deployment, settings_of

CONFIGS = Path(__file__).parents[2] / "serve" / "configs"


def test_the_local_file_is_read_with_absolute_places():
    deployment = read_deployment(CONFIGS / "local.yaml", ["limits.waiting=7"], port=8999)
    settings = settings_of(deployment)
    assert settings.limits.waiting == 7
    assert deployment["http_options"] == {"host": "127.0.0.1", "port": 8999, "request_timeout_s": 90}
    places = [model.bundle for model in settings.models.values()]
    places += [*settings.judges, settings.samples.data, settings.keys, *settings.audits.roots]
    assert all(Path(place).is_absolute() for place in places)
    assert settings.models["pathology"].data == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limits.wating=7", "waiting"),
        ("limits.waiting=0", "limits.waiting"),
        ("models.exact.bundle=x", "exact"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(override, said):
    with pytest.raises(ConfigError, match=said):
        read_deployment(CONFIGS / "local.yaml", [override])


def test_a_file_of_no_application_is_refused(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text("models: {}")
    with pytest.raises(ConfigError, match="one application"):
        read_deployment(file, [])


def test_the_first_start_makes_a_key_that_later_starts_keep(tmp_path):
    settings = settings_of(read_deployment(CONFIGS / "local.yaml", [f"keys={tmp_path}/keys.json"]))
    file = first_key(settings)
    key = file.read_text().strip()
    assert file.stat().st_mode & 0o077 == 0
    assert key not in (tmp_path / "keys.json").read_text()
    assert Keyring.read(settings.keys).owner(f"Bearer {key}") == "local"
    assert first_key(settings).read_text().strip() == key


def test_a_new_key_of_this_machine_stands_in_its_file_and_others_do_not(tmp_path):
    settings = settings_of(read_deployment(CONFIGS / "local.yaml", [f"keys={tmp_path}/keys.json"]))
    file = first_key(settings)
    named_key(settings, "ann")
    key = named_key(settings, "local")
    assert first_key(settings) == file
    assert file.read_text().strip() == key
    assert file.stat().st_mode & 0o077 == 0
    assert Keyring.read(settings.keys).owner(f"Bearer {key}") == "local"


def test_a_port_that_another_server_has_is_refused():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} .*--port"):
            LocalServer.start(read_deployment(CONFIGS / "local.yaml", [], port=port))
