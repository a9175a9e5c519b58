"""What a user sees while trainings run: one bar each, on standard error."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LOG_EVERY_POLLS = 15


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the state of every training: rank 0 writes, whoever displays reads."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[int, int, float]] = {}

    def update(self, name: str, step: int, steps: int, loss: float) -> None:
        """Notes that run ``name`` has done ``step`` of ``steps`` and its latest loss."""
        self.runs[name] = (step, steps, loss)

    def read(self) -> dict[str, tuple[int, int, float]]:
        """Run to step, steps and loss."""
        return self.runs


@contextmanager
def progress_board() -> Iterator[Any]:
    """A board for trainings to write to, drawn while the context lasts.

    A terminal shows a bar for each run; anything else gets a line of log now and then.
    """
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    done = threading.Event()
    draw = _draw_bars if sys.stderr.isatty() else _draw_lines
    drawer = threading.Thread(target=draw, args=(board, done), daemon=True, name="progress")
    drawer.start()
    try:
        yield board
    finally:
        done.set()
        drawer.join(timeout=5)
        ray.kill(board)


def _draw_bars(board: Any, done: threading.Event) -> None:
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        while not done.wait(POLL_SECONDS):
            for name, (step, steps, loss) in ray.get(board.read.remote()).items():
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=steps, loss=loss)
                bars.update(tasks[name], completed=step, loss=loss)


def _draw_lines(board: Any, done: threading.Event) -> None:
    shown: dict[str, int] = {}
    polls = 0
    while not done.wait(POLL_SECONDS):
        polls += 1
        for name, (step, steps, loss) in ray.get(board.read.remote()).items():
            if (polls % LOG_EVERY_POLLS == 0 or step == steps) and shown.get(name) != step:
                logger.info("%s: step %d of %d, loss %.4f", name, step, steps, loss)
                shown[name] = step
