"""From nothing to everything measured: data, trainings, measurements."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from counterray.bundle import code_version, open_bundle
from counterray.data.dataset import open_dataset
from counterray.data.ingest import ingest
from counterray.storage import Location
from jobs.pipeline import run_steps
from jobs.refinement import refine
from jobs.reproduction.causal_disentanglement.bench import Bench
from jobs.reproduction.causal_disentanglement.experiment import Experiment, Plan, make_plan, read_settings
from jobs.reproduction.causal_disentanglement.rare import rare_edits
from jobs.reproduction.causal_disentanglement.report import Outcome
from jobs.reproduction.causal_disentanglement.scores import score_arm
from jobs.reproduction.causal_disentanglement.utility import measure_utility
from jobs.reproduction.measuring import measure_all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CausalDisentanglement:
    """The experiment, its settings checked.

    Attributes:
        config: Its settings.
        plan: Its steps.
    """

    config: Experiment
    plan: Plan

    @classmethod
    def read(cls, path: Path, overrides: list[str]) -> CausalDisentanglement:
        """Reads its file; see `read_settings` and `make_plan` for the errors."""
        config = read_settings(path, overrides)
        return cls(config, make_plan(path, config))

    def measure(self, place: Location) -> Outcome:
        """Trains and measures what is not there yet."""
        started = time.monotonic()
        config, plan = self.config, self.plan
        ingest(config.ingest, None, f"{place.uri}/data")
        refined = refine(config.refine, data=f"{place.uri}/data", out=f"{place.uri}/refined")
        data = str(refined["dataset"])
        logger.info("data after %.0f s; %d steps", time.monotonic() - started, len(plan.stages))
        made = run_steps(plan.stages, plan.prepared, place=place.uri, data=data, parallel=config.parallel)
        logger.info("trained after %.0f s", time.monotonic() - started)
        return _measure(config, _benches(config, plan, made, data), made, data, place.uri)


def _benches(
    config: Experiment, plan: Plan, made: Mapping[str, str], data: str
) -> dict[tuple[int, str], Bench]:
    return {
        (seed, arm): Bench(
            experiment=config,
            arm=arm,
            seed=seed,
            data=data,
            model=made[step],
            classifier=made[f"seed-{seed}/judges/classifier"],
            segmentor=made[f"seed-{seed}/judges/segmentor"],
        )
        for (seed, arm), step in plan.models.items()
    }


def _measure(
    config: Experiment,
    benches: Mapping[tuple[int, str], Bench],
    made: Mapping[str, str],
    data: str,
    place: str,
) -> Outcome:
    full = [bench for (_, arm), bench in benches.items() if arm == config.full]
    scores = measure_all("scores", score_arm, list(benches.values()), place, parallel=config.parallel)
    utility = measure_all("utility", measure_utility, full, place, parallel=config.parallel)
    # Timed, so one at a time with nothing beside it.
    rare = measure_all("rare", rare_edits, full, place, parallel=1)
    names = [name for name in made if not name.endswith("/latents")]
    return Outcome(
        config,
        open_dataset(data).manifest,
        {
            arm: [each for bench, each in zip(benches.values(), scores, strict=True) if bench.arm == arm]
            for arm in config.chosen
        },
        rare=rare,
        utility=utility,
        bundles={name: open_bundle(made[name]).checksum for name in names},
        facts={
            "Code version": code_version(),
            "Data fingerprint": open_dataset(data).manifest.fingerprint,
            "Seeds": ", ".join(map(str, config.seeds)),
            "Fréchet distance by": "pooled features of the classifier that scores, of each seed",
        },
    )
