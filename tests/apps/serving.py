"""A whole server in the session's Ray: the real application, small models."""

import warnings

import httpx2
import yaml
from ray import serve

from serve.gateway import build
from serve.keys import add_key
from serve.settings import Settings

PORT = 8123


def deploy(plain, **options):
    """Runs the application, and returns a client with a key.

    Args:
        plain: Settings.
        options: Of the deployment ``generator-main``.
    """
    settings = Settings.model_validate(plain)
    key = add_key(settings.keys, "tests")
    application = build(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Serve's own, of its settings to come
        serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 90})
        serve.run(application, name="counterray", route_prefix="/")
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=90)


def config_file(path):
    """A Serve config file as plain values."""
    return yaml.safe_load(path.read_text())
