"""The Ray stream against a plain torch DataLoader: same shards, same decode, same cores, one run.

    python -m tests.benchmarks.loader_speed [--studies 8000] [--image-size 64] [--s3]

Both read the same Parquet shards in the same shuffled order of row groups and make the same batches; the
DataLoader has as many worker processes as there are cores. Printed: images/s of each, the ratio (more than 1:
Ray is faster), and the share of the raw limit, which is decoding alone on all cores with the data in memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import ray
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from counterray.config import validate
from counterray.data.batching import LoaderConfig, collate, column_names, decode, read_row_groups
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.ingest import IngestConfig, ingest
from counterray.data.loader import BlockReader, Plan, Position, make_plan, stream
from counterray.data.study import Batch
from tests.s3_server import serve

CORES = os.cpu_count() or 1
BATCH = 32


class Shards(IterableDataset[Batch]):
    """The blocks of a plan, dealt to the DataLoader's workers in turn."""

    def __init__(self, dataset: Dataset, plan: Plan) -> None:
        self.dataset, self.plan = dataset, plan

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        info = self.dataset.info()
        reader = BlockReader(self.dataset, self.plan, LoaderConfig(), info, (), False, (), Position())
        index = first
        while True:
            columns = reader({"id": [index]}, first=0)  # type: ignore[dict-item]
            columns.pop("block")
            columns.pop("row")
            for start in range(0, len(columns["image"]) - BATCH + 1, BATCH):
                yield collate({name: rows[start : start + BATCH] for name, rows in columns.items()}, info)
            index += step


def rate(batches: Iterator[Batch], images: int) -> float:
    """Images per second, from the first batch on."""
    next(batches)
    started, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch)
        if seen >= images:
            break
    return seen / (time.perf_counter() - started)


def ray_rate(dataset: Dataset, plan: Plan, images: int) -> float:
    return rate((batch for batch, _ in stream(dataset, plan, LoaderConfig(), batch_size=BATCH)), images)


def torch_rate(dataset: Dataset, plan: Plan, images: int) -> float:
    loader = DataLoader(
        Shards(dataset, plan), batch_size=None, num_workers=CORES, multiprocessing_context="forkserver"
    )
    return rate(iter(loader), images)


def decode_alone(location: str) -> float:
    """Images per second of one core that decodes row groups held in memory."""
    torch.set_num_threads(1)
    dataset = open_dataset(location)
    shards = dataset.manifest.shards["train"]
    tables = [read_row_groups(dataset, s.file, [0], column_names((), False)) for s in islice(shards, 4)]
    info, seen, started = dataset.info(), 0, time.perf_counter()
    while time.perf_counter() - started < 4:
        for table in tables:
            seen += len(decode(table, info, LoaderConfig(), masks=(), reports=False)["image"])
    return seen / (time.perf_counter() - started)


def decode_limit(location: str) -> float:
    """Images per second of all cores that only decode."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        return sum(pool.map(decode_alone, [location] * CORES))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=8000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=40000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        out = f"{folder}/dataset"
        if arguments.s3:
            server = stack.enter_context(serve(Path(folder) / "s3"))
            server.make_bucket("benchmark")
            os.environ |= server.environment()
            out = "s3://benchmark/dataset"
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        ray.init(
            address="local",
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        source = {"name": "phantom", "studies": arguments.studies}
        ingest(validate(IngestConfig, {"source": source, "image_size": arguments.image_size}), None, out)
        dataset = open_dataset(out)
        plan = make_plan(dataset, "train", LoaderConfig(), seed=0)
        ratios = []
        for _ in range(arguments.rounds):
            ours, theirs = (
                ray_rate(dataset, plan, arguments.images),
                torch_rate(dataset, plan, arguments.images),
            )
            ratios.append(ours / theirs)
            sys.stdout.write(f"Ray {ours:.0f}/s, DataLoader {theirs:.0f}/s, ratio {ours / theirs:.2f}\n")
        limit = decode_limit(out)
        sys.stdout.write(
            f"median ratio {sorted(ratios)[len(ratios) // 2]:.2f}; "
            f"decode limit {limit:.0f}/s, Ray's share of it {ours / limit:.2f}\n"
        )


if __name__ == "__main__":
    main()
