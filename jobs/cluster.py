"""Jobs that were sent to a cluster: list them, look at one, follow its log, stop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.common import AsJson, run

if TYPE_CHECKING:
    from jobs.submission.following import Submitted

app = typer.Typer(help="Jobs that were sent to a cluster: list, status, logs, stop.", no_args_is_help=True)

Dashboard = Annotated[
    str | None,
    typer.Option(help="The head's dashboard, such as http://head:8265. Default: RAY_API_SERVER_ADDRESS."),
]
Name = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as submit and list print it.")]


def result_of(job: Submitted) -> dict[str, Any]:
    """A job as plain values."""
    return asdict(job)


def summary(result: Mapping[str, Any]) -> str:
    """A job in a line or two."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(result["started"]))
    place = f"  {result['out']}" if result["out"] else ""
    # Ray's message goes on with the end of the log.
    why = result["message"].partition(", last available logs")[0]
    said = f"\n  {why}" if result["exit_status"] and why else ""
    return f"{result['status'].lower():9s} {started}  {result['id']}{place}{said}"


@app.command("list")
def list_jobs(address: Dashboard = None, as_json: AsJson = False) -> None:
    """All jobs that the cluster knows, the newest first."""

    def work() -> Mapping[str, Any]:
        from jobs.submission.client import connect
        from jobs.submission.following import find_all

        return {"jobs": [result_of(job) for job in find_all(connect(address))]}

    run(work, as_json=as_json, summary=lambda result: "\n".join(map(summary, result["jobs"])) or "none")


@app.command("status")
def status(name: Name, address: Dashboard = None, as_json: AsJson = False) -> None:
    """How a job stands, and its exit status once it has ended."""

    def work() -> Mapping[str, Any]:
        from jobs.submission.client import connect
        from jobs.submission.following import find

        return result_of(find(connect(address), name))

    run(work, as_json=as_json, summary=summary)


@app.command("logs")
def logs(name: Name, address: Dashboard = None, as_json: AsJson = False) -> None:
    """A job's log, followed until the job has ended; the exit status is the job's own."""

    def work() -> Mapping[str, Any]:
        from jobs.submission.client import connect
        from jobs.submission.following import find, follow

        client = connect(address)
        find(client, name)
        return result_of(follow(client, name))

    sys.exit(run(work, as_json=as_json, summary=summary)["exit_status"])


@app.command("stop")
def stop(name: Name, address: Dashboard = None, as_json: AsJson = False) -> None:
    """End a job; what it has saved stays, and the same command sent again goes on from there."""

    def work() -> Mapping[str, Any]:
        from jobs.submission.client import connect
        from jobs.submission.following import stop as stop_job

        return result_of(stop_job(connect(address), name))

    run(work, as_json=as_json, summary=summary)
