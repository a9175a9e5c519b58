"""Images a second through ingest, and its share of what the same work does without Ray.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.ingest_speed [--images 2000] [--edge 256] [--cores 2]

PNG files of ``--edge`` px become a 64 px dataset twice: by a plain loop over the chunks in one
process, and by the ingest job on ``--cores`` cores, its workers warm. The last line is JSON; ``ratio`` is the
job's speed over ``--cores`` times the plain loop's, 1 at best.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from counterray.config import validate
from counterray.data import chunks
from counterray.data.chunks import Chunk
from counterray.data.ingest import IngestConfig, ingest
from counterray.data.splits import hash_split
from counterray.storage import resolve


def make_source(folder: Path, images: int, edge: int) -> IngestConfig:
    """Noisy smooth pictures, which PNG packs about as well as radiographs."""
    random = np.random.default_rng(0)
    lines = ["path,patient_id"]
    for number in range(images):
        smooth = Image.fromarray(random.integers(40, 200, (8, 8), dtype=np.uint8)).resize((edge, edge))
        noisy = np.asarray(smooth) + random.integers(0, 8, (edge, edge), dtype=np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png", compress_level=1)
        lines.append(f"{number}.png,p{number // 3}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return validate(IngestConfig, {"source": {"name": "table", "file": "all.csv"}, "shard_rows": 128})


def plain(config: IngestConfig, root: Path, out: Path) -> float:
    start = time.perf_counter()
    records = config.source.listing(resolve(root)).records
    splits = [hash_split(patient, config.splits) for patient in records["patient_id"].to_pylist()]
    position = records.schema.get_field_index("split")
    records = records.set_column(position, records.schema.field("split"), [splits])
    for number, first in enumerate(range(0, len(records), config.shard_rows)):
        part = Chunk(f"{number:05d}", chunks.pack(records.slice(first, config.shard_rows)))
        chunks.write_chunk(
            part,
            resolve(root),
            resolve(out),
            source=config.source,
            size=config.image_size,
            fit=config.fit,
            splits=config.splits,
        )
    return time.perf_counter() - start


def job(config: IngestConfig, root: Path, out: Path) -> float:
    start = time.perf_counter()
    ingest(config, str(root), str(out))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    ray.init(num_cpus=given.cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "source").mkdir()
        config = make_source(folder / "source", given.images, given.edge)
        job(config, folder / "source", folder / "warm")
        alone = plain(config, folder / "source", folder / "plain")
        together = job(config, folder / "source", folder / "job")
    rates = {"plain": given.images / alone, "ingest": given.images / together}
    result = {
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["ingest"] / (given.cores * rates["plain"]), 3),
        "cores": given.cores,
        "edge": given.edge,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
