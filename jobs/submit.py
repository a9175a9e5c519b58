"""Run a job on a cluster, and follow it here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.cluster import Dashboard, result_of, summary
from jobs.common import AsJson, run
from jobs.submission.package import Packages


def main(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="JOB", help="After two dashes: a job and its arguments.")
    ],
    address: Dashboard = None,
    packages: Annotated[
        Packages, typer.Option(help="Those of the nodes' image, or requirements.lock installed on each.")
    ] = "image",
    env: Annotated[
        list[str] | None, typer.Option(help="Variable NAME=VALUE of the job, no secret. Repeatable.")
    ] = None,
    cpus: Annotated[
        float, typer.Option(min=0, help="CPUs for the job's own process; with 0 it runs on the head.")
    ] = 0.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for the job's own process.")] = 0.0,
    memory: Annotated[float, typer.Option(min=0, help="Memory for the job's own process [GiB].")] = 0.0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on a cluster, and follow it here: python -m jobs submit --address URL -- train --config ...

    The exit status is the job's own; 130 where it was stopped. The same line again continues the same run.
    """

    def work() -> Mapping[str, Any]:
        from jobs.submission.client import connect
        from jobs.submission.command import read_command
        from jobs.submission.following import find, follow
        from jobs.submission.sending import Request, send

        assert context.parent is not None
        command = read_command(words, context.parent.command, context.parent)
        client = connect(address)
        name = send(client, command, Request(packages, env or (), cpus, gpus, memory))
        typer.echo(f"{name}: {command.line}", err=True)
        return result_of(find(client, name) if detach else follow(client, name))

    result = run(work, as_json=as_json, summary=summary)
    sys.exit(result["exit_status"] or 0)
