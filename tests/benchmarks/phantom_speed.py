"""Images a second and core that the phantom draws: ``python tests/benchmarks/phantom_speed.py``.

Goal: at least 300 images/s on one core at 64 x 64. Processor time is counted, so that other work on the
machine blurs the figure less; the best of three rounds is taken.
"""

from __future__ import annotations

import sys
import time

import torch

from counterray.data.phantom.population import draw_population
from counterray.data.phantom.render import render_study
from counterray.data.phantom.studies import PhantomConfig, draw_rows

GOAL = 300.0


def images_per_second(size: int, count: int) -> float:
    values = {n: v.tolist() for n, v in draw_population(0, 0, count, image_size=size).values.items()}
    studies = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return count / best_seconds(lambda: [render_study(study, size) for study in studies])


def rows_per_second(size: int, count: int) -> float:
    config = PhantomConfig(studies=count, image_size=size)
    return count / best_seconds(lambda: draw_rows(config, 0, count))


def best_seconds(work) -> float:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    for size, count in ((64, 400), (128, 150), (256, 60), (512, 15)):
        rate = images_per_second(size, count)
        goal = f", {rate / GOAL:.2f} of the goal" if size == 64 else ""
        sys.stdout.write(f"{size} px: {rate:.0f} images/s/core{goal}\n")
    sys.stdout.write(f"64 px with PNG, masks and report: {rows_per_second(64, 400):.0f} studies/s/core\n")


if __name__ == "__main__":
    main()
