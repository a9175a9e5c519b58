"""A whole server in the session's Ray: the real application, small models."""

import warnings

import httpx2
from ray import serve

from serve.gateway import build
from serve.keys import add_key
from serve.settings import Settings

PORT = 8123


def deploy(plain):
    """Runs the application, and returns a client with a key."""
    key = add_key(Settings.model_validate(plain).keys, "tests")
    update(plain)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=90)


def update(plain):
    """Runs the application with these settings, in place of the one that may run."""
    application = build(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Serve's own, of its settings to come
        serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 90})
        serve.run(application, name="counterray", route_prefix="/")
