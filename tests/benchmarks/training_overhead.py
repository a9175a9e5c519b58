"""A training step through Ray and DeepSpeed against the same stage in the plain loop, in one run.

    python -m tests.benchmarks.training_overhead [--steps 60]

Both train the same stage on the same kind of batches with one thread; the plain loop's batches are in memory,
so whatever Ray Data, DeepSpeed and the logging cost is counted against the platform. Printed: milliseconds of
a step of each and the overhead, which at steps of 200 ms and more should be at most 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT

VALUES = {
    "stage": "gsvae",
    "network": {"widths": [32, 64], "transformer_width": 128, "transformer_layers": 2},
    "weights": {"identity": 0.0, "pathology": 0.0},
    "batch_size": 32,
    "log_every_steps": 10,
}
PLAIN = """
import json, sys, time, torch
from itertools import islice
from counterray import catalog
from counterray.data.batching import read_batches
from counterray.data.dataset import open_dataset
values, data, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
stage, config = catalog.make_training({**values, "steps": steps})
dataset = open_dataset(data)
batches = list(islice(read_batches(dataset, "train", batch_size=config.batch_size), 20))
module = stage.build({}, dataset.info())
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
times = []
for step in range(steps):
    started = time.perf_counter()
    losses = stage.loss(module, batches[step % len(batches)], step)
    optimizer.zero_grad()
    losses.total.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    times.append(time.perf_counter() - started)
times = sorted(times[10:])
print(json.dumps(sum(times) / len(times)))
"""


def job(*arguments: str) -> None:
    """Runs a job to its end."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, env=environment, check=True)


def plain(data: str, steps: int) -> float:
    """Mean seconds of a step in the plain loop, after ten to warm up."""
    line = [sys.executable, "-c", PLAIN, json.dumps(VALUES), data, str(steps)]
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def platform(data: str, out: Path, steps: int) -> float:
    """Mean seconds of a step through Ray and DeepSpeed, from the run's own log, after ten to warm up."""
    config = out.with_suffix(".json")
    values = {**VALUES, "steps": steps, "checkpoint": {"every_steps": steps, "validation_studies": 32}}
    config.write_text(json.dumps(values))
    job("train", "--config", str(config), "--data", data, "--out", str(out))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    times = {line["step"]: line["time"] for line in lines if line["split"] == "train"}
    return float((times[steps] - times[10]) / (steps - 10))


def main() -> None:
    """Measures in turn, so that a drift of the machine's speed meets both, and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        job("ingest", "--source", "phantom", "--set", "source.studies=1500", "--out", data)
        for number in range(arguments.rounds):
            theirs = plain(data, arguments.steps)
            ours = platform(data, Path(folder) / f"run{number}", arguments.steps)
            ratios.append(ours / theirs)
            sys.stdout.write(
                f"plain loop {1000 * theirs:.0f} ms, Ray + DeepSpeed {1000 * ours:.0f} ms, "
                f"overhead {100 * (ours / theirs - 1):.1f} %\n"
            )
    middle = sorted(ratios)[len(ratios) // 2]
    sys.stdout.write(f"median ratio {middle:.3f}, overhead {100 * (middle - 1):.1f} %\n")


if __name__ == "__main__":
    main()
