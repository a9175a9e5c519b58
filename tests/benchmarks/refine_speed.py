"""Reports a second through the rules refiner, in a plain loop and in the refine job, and how well it agrees.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.refine_speed --root <folder of iu_xray reports> [--cores 2]

The lexicon was written on the half of the reports whose identifier's SHA-256 begins with an even byte;
``macro_f1`` is given for that half and for the other. The last line is JSON; ``seconds_for_4000`` is the
job's, its workers' start included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray

from counterray.config import validate
from counterray.data.ingest import IngestConfig, ingest
from counterray.data.sources.iu_xray import IuXray
from counterray.reports.agreement import agreement
from counterray.reports.rules import RulesRefiner
from counterray.reports.transform import RefineConfig
from counterray.storage import resolve
from jobs.refinement import refine


def macro_f1(reports: pa.Table) -> float:
    refined = RulesRefiner().refine(reports["report"].to_pylist())
    table = agreement([one.findings for one in refined], reports["findings"].to_pylist())
    return round(table.macro_f1(10), 3)


def halves(reports: pa.Table) -> tuple[pa.Table, pa.Table]:
    names = reports["image_id"].to_pylist()
    even = pa.array([hashlib.sha256(name.encode()).digest()[0] % 2 == 0 for name in names])
    return reports.filter(even), reports.filter(pc.invert(even))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    reports = IuXray().listing(resolve(given.root)).reports
    assert reports is not None
    start = time.perf_counter()
    RulesRefiner().refine(reports["report"].to_pylist())
    alone = time.perf_counter() - start
    written, held_out = (macro_f1(half) for half in halves(reports))
    ray.init(num_cpus=given.cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        data = str(Path(scratch) / "data")
        ingest(validate(IngestConfig, {"source": "iu_xray"}), given.root, data)
        start = time.perf_counter()
        refine(RefineConfig(), data=data, out=str(Path(scratch) / "refined"))
        together = time.perf_counter() - start
    result = {
        "reports": len(reports),
        "reports_per_second": {"plain": round(len(reports) / alone), "job": round(len(reports) / together)},
        "seconds_for_4000": round(4000 * together / len(reports), 1),
        "macro_f1": {"written_on": written, "held_out": held_out},
        "cores": given.cores,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
