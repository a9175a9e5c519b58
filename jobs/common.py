"""What every job shares: its options, a Ray to run on, its result as text or JSON, its errors."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.storage import StorageError
from counterray.telemetry import configure_logging

Address = Annotated[
    str | None, typer.Option(help="Ray address, such as ray://head:10001 or auto. Default: a local Ray.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: a.b=c. Repeatable.", metavar="A.B=C")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="The last line of standard output is one JSON object with the result.")
]

LOCAL_OBJECT_STORE_BYTES = 1 << 30
"""Object store of a local Ray; blocks beyond it spill to disk."""


def connect(address: str | None) -> None:
    """Joins the Ray at ``address``, or the job's own cluster, or starts a quiet local one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that they are off
    # That of every execution it ended; Ray sets the level of ray.data itself anew with each of them.
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    if address is not None or os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StorageError(
                f"No Ray answers at --address {address or os.environ['RAY_ADDRESS']} "
                f"({type(error).__name__}). Give the address of a running cluster, such as "
                "ray://head:10001, or leave it out for a local Ray."
            ) from error
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # One CPU trains and one decodes; with fewer, a training would wait for its data for ever.
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=False,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)


INCOMPLETE = 3
"""Exit status of a job that wrote its results and left out some of what it was asked for."""


def run(
    work: Callable[[], Mapping[str, Any]],
    *,
    as_json: bool,
    summary: Callable[[Mapping[str, Any]], str],
    left_out: Callable[[Mapping[str, Any]], str] = lambda result: "",
) -> Mapping[str, Any]:
    """Runs a job, prints and returns its result; an error that a user can mend is a message and status 1.

    Args:
        work: The job.
        as_json: Whether the result is printed as JSON.
        summary: The result in words.
        left_out: What was asked for and is not in the result, in a sentence; it becomes an error's message
            after the result, and the status `INCOMPLETE`.
    """
    configure_logging()
    try:
        result = work()
    except user_errors() as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    typer.echo(json.dumps(_plain(result), allow_nan=False) if as_json else summary(result))
    if missing := left_out(result):
        typer.echo(f"error: {missing}", err=True)
        sys.exit(INCOMPLETE)
    return result


def _plain(value: Any) -> Any:
    """The same with null for numbers that are not finite, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; any other is a defect and keeps its traceback."""
    from counterray.audits.errors import AuditError
    from counterray.data.ingest import IngestError
    from counterray.models.generator import EditError
    from counterray.training.run_folder import RunError
    from jobs.evaluation import EvaluationError
    from jobs.generation.request import GenerationError
    from jobs.submission.errors import SubmissionError

    return (
        *(AuditError, BundleError, ConfigError, EditError, EvaluationError, GenerationError),
        *(IngestError, RunError, StorageError, SubmissionError),
    )
