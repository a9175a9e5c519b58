"""Workers that die are started again; what a piece raises reaches the user as it was raised."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from counterray.storage import StorageError
from jobs.generation.request import GenerationError, WorkersConfig
from jobs.generation.workers import workers

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

ONE = WorkersConfig(workers=1)


def test_a_worker_that_was_killed_opens_again_and_does_its_piece(tmp_path: Path) -> None:
    def make() -> Callable[[int], int]:
        opened = len(list(tmp_path.iterdir()))
        (tmp_path / str(opened)).touch()

        def square(piece: int) -> int:
            if piece == 2 and opened == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return piece**2

        return square

    with workers(make, ONE, at_most=3) as do:
        assert sorted(do([1, 2, 3])) == [1, 4, 9]
        assert list(do([4])) == [16]
    assert len(list(tmp_path.iterdir())) == 2


def test_errors_of_a_piece_and_of_opening_keep_their_kind() -> None:
    def fail(piece: object) -> None:
        raise StorageError(f"no room for {piece}")

    with workers(lambda: fail, ONE, at_most=1) as do, pytest.raises(StorageError, match="no room for 7"):
        list(do([7]))


def test_more_workers_than_fit_are_refused() -> None:
    with (
        workers(lambda: abs, WorkersConfig(workers=1000), at_most=1000) as do,
        pytest.raises(GenerationError, match=r"resources.workers = 1000 .* do not fit: Ray has \d"),
    ):
        list(do([-1]))
