"""From nothing to every verdict: data, trainings, pools."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from counterray.bundle import code_version, open_bundle
from counterray.data.ingest import ingest
from counterray.storage import Location
from jobs.pipeline import run_steps
from jobs.reproduction.counterfactual_audit.experiment import (
    SCORING_JUDGES,
    Experiment,
    Plan,
    PoolRun,
    make_plan,
    read_settings,
)
from jobs.reproduction.counterfactual_audit.pool import measure_pool
from jobs.reproduction.counterfactual_audit.report import Outcome
from jobs.reproduction.measuring import measure_all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CounterfactualAudit:
    """The experiment, its settings checked.

    Attributes:
        config: Its settings.
        plan: Its trainings.
    """

    config: Experiment
    plan: Plan

    @classmethod
    def read(cls, path: Path, overrides: list[str]) -> CounterfactualAudit:
        """Reads its file; see `read_settings` and `make_plan` for the errors."""
        config = read_settings(path, overrides)
        return cls(config, make_plan(path, config))

    def measure(self, place: Location) -> Outcome:
        """Trains and measures what is not there yet."""
        started = time.monotonic()
        config, plan = self.config, self.plan
        data = f"{place.uri}/data"
        manifest = ingest(config.ingest, None, data)
        logger.info("data after %.0f s; %d trainings", time.monotonic() - started, len(plan.stages))
        made = run_steps(plan.stages, plan.prepared, place=place.uri, data=data, parallel=config.parallel)
        logger.info("trained after %.0f s", time.monotonic() - started)
        runs = [
            PoolRun(
                config,
                seed,
                generator=made[f"seed-{seed}/ldm"],
                judges={stage: made[f"seed-{seed}/{stage}"] for stage in SCORING_JUDGES},
            )
            for seed in config.seeds
        ]
        return Outcome(
            config,
            measure_all("pool", measure_pool, runs, place.uri, parallel=config.parallel),
            bundles={name: open_bundle(uri).checksum for name, uri in made.items()},
            facts={
                "Code version": code_version(),
                "Data fingerprint": manifest.fingerprint,
                "Seeds": ", ".join(map(str, config.seeds)),
            },
        )
