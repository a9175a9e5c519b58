"""Put trained models online: an API, and a page, on this machine."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import Overrides, run

CONFIG = Path(__file__).parents[1] / "serve" / "configs" / "local.yaml"


def main(
    config: Annotated[
        Path, typer.Option(help="Serve config file; clusters take it by serve deploy.")
    ] = CONFIG,
    new_key: Annotated[
        str, typer.Option(help="Make a key under this name, print it once, and end; a former one ends.")
    ] = "",
    port: Annotated[int | None, typer.Option(help="Where to listen; the config file's by default.")] = None,
    overrides: Overrides = None,
) -> None:
    """Put trained models online: an API, and a page, on this machine."""

    def work() -> Mapping[str, Any]:
        from counterray.bundle import open_bundle
        from serve.local import LocalServer, first_key, named_key, read_deployment, settings_of

        deployment = read_deployment(config, overrides or (), port=port)
        settings = settings_of(deployment)
        if new_key:
            return {"key": named_key(settings, new_key)}
        for model in settings.models.values():
            open_bundle(model.bundle)
        key = first_key(settings)
        server = LocalServer.start(deployment)
        try:
            typer.echo(f"serving {', '.join(settings.models)}\npage and API: {server.url}")
            typer.echo(f"key: {key.read_text().strip()} (kept in {key})" if key.is_file() else "key: yours")
            typer.echo("Ctrl-C ends it.")
            # Only now: Ray sets handlers of its own while it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with suppress(KeyboardInterrupt):
                signal.pause()
        finally:
            server.stop()
        return {"key": ""}

    run(work, as_json=False, summary=lambda result: result["key"] or "ended")
