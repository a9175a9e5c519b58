"""Small trainings for the tests of the training path."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from counterray import catalog
from counterray.training.ray_train import Trained, train

TINY: dict[str, Any] = {
    "stage": "classifier",
    "backbone": {"widths": [8, 16], "blocks": [1, 1]},
    "steps": 8,
    "batch_size": 16,
    "log_every_steps": 1,
    "optimizer": {"lr": 1e-3, "warmup_steps": 2},
    "resources": {"cpus_per_worker": 0.5, "data_cpus": 1.0},
    "checkpoint": {"every_steps": 4, "validation_studies": 64},
    "loader": {"block_studies": 256},
}


def settings(**changes: Any) -> dict[str, Any]:
    """`TINY` with changes; a mapping changes single keys of a group, ``None`` removes one."""
    merged = dict(TINY)
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if value is not None}


def fit(out: Path, data: str, *, resume: bool = False, **changes: Any) -> Trained:
    """Trains on the session's Ray."""
    stage, config = catalog.make_training(settings(**changes))
    return train(
        stage, config, method=catalog.entry(stage.name).method, data=data, out=str(out), resume=resume
    )


@contextmanager
def killing_a_worker_after(condition: Callable[[], bool]) -> Iterator[list[int]]:
    """Kills one training worker (SIGKILL) as soon as ``condition`` holds; gives the killed processes."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            if condition():
                # Of this process's own Ray alone: tests beside it have one too.
                workers = [p for p in psutil.Process().children(recursive=True) if _is_training_worker(p)]
                if workers:
                    os.kill(workers[-1].pid, signal.SIGKILL)
                    killed.append(workers[-1].pid)
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield killed
    finally:
        done.set()
        watcher.join(timeout=5)


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    """Waits until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still waiting after {seconds} s"
        time.sleep(0.05)


def _is_training_worker(process: psutil.Process) -> bool:
    try:
        command = process.cmdline() or [""]
    except psutil.Error:  # it has just ended
        return False
    return command[0].startswith("ray::RayTrainWorker")
