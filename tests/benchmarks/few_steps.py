"""Quality and speed of few sampling steps against 100, with the same noise, patients and judge.

    python -m tests.benchmarks.few_steps --model BUNDLE --data DATASET --judge CLASSIFIER [--studies 400]

Every test image receives what another patient's prompt says, once for each sampler. Printed for each:
images/s (one process, all cores; the abduction counts), the judge's macro AUROC of the counterfactuals, the
Fréchet distance to validation images, the error against the exact counterfactual where the data know it, and
the mean absolute difference from the first sampler's images (grey values in [-1, 1]).
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor

from counterray.bundle import open_bundle
from counterray.data.batching import read_batches
from counterray.data.dataset import open_dataset
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor
from counterray.evaluation.features import feature_judge
from counterray.evaluation.generator import Judges, evaluate_counterfactuals, shuffled_donors
from counterray.evaluation.judge import open_judge
from counterray.evaluation.opening import exact_counterfactuals, gather, open_editor
from counterray.evaluation.settings import Settings

SAMPLERS = (
    *(("ddim", steps) for steps in (100, 50, 20, 10, 5)),
    *(("dpm_solver", steps) for steps in (20, 10, 5)),
)
SHOWN = ("effectiveness_auroc_macro", "frechet_distance", "ground_truth_error")
HEAD = (
    f"{'sampler':<12}{'steps':>6}{'z_T':>10}{'images/s':>10}{'AUROC':>8}{'FID':>8}{'error':>8}{'apart':>8}\n"
)


class Timed:
    """An editor and the seconds that its edits took, those that change nothing left out."""

    def __init__(self, edit: Editor) -> None:
        self.edit, self.seconds = edit, 0.0

    def __call__(self, image: Tensor, patient: Batch, target: Batch) -> Tensor:
        """Edits, and counts the time."""
        started = time.perf_counter()
        made = self.edit(image, patient, target)
        if target is not patient:
            self.seconds += time.perf_counter() - started
        return made


def ways(guidance: float) -> list[dict[str, Any]]:
    """Settings of every sampler with fresh noise, and of those that can be run backwards with inverted."""
    found = []
    for (scheduler, steps), noise in itertools.product(SAMPLERS, ("fresh", "inverted")):
        if noise == "inverted" and scheduler != "ddim":
            continue
        sampler = {"scheduler": scheduler, "steps": steps, "guidance_scale": guidance}
        found.append({"sampler": sampler, "abduction": {"noise": noise, "residual": noise == "inverted"}})
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    for name in ("--model", "--data", "--judge"):
        parser.add_argument(name, required=True)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--guidance", type=float, default=2.5)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    dataset, bundle, judge = (
        open_dataset(arguments.data),
        open_bundle(arguments.model),
        open_bundle(arguments.judge),
    )
    test, validation = (
        gather(read_batches(dataset, split, batch_size=256, reports=True), limit=arguments.studies)
        for split in ("test", "validation")
    )
    judges = Judges(classifier=open_judge(judge), features=feature_judge(judge))
    baseline: dict[str, Tensor] = {}
    sys.stdout.write(HEAD)
    for way in ways(arguments.guidance):
        timed = Timed(open_editor(bundle, way))
        evaluation = evaluate_counterfactuals(
            timed,
            test,
            shuffled_donors(test),
            judges=judges,
            exact=exact_counterfactuals(dataset.manifest),
            validation=validation,
            settings=Settings(cycles=(1,), law_images=2, minimum_positives=10),
        )
        sampler, noise = way["sampler"], way["abduction"]["noise"]
        images = evaluation.counterfactuals.image
        apart = float((images - baseline.setdefault(noise, images)).abs().mean())
        values = [metric.value if metric else float("nan") for metric in map(evaluation.find, SHOWN)]
        sys.stdout.write(
            f"{sampler['scheduler']:<12}{sampler['steps']:>6}{noise:>10}{len(test) / timed.seconds:>10.1f}"
            + "".join(f"{value:>8.3f}" for value in (*values, apart))
            + "\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
