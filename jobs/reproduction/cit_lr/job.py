"""Every world and every calibration, measured on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from counterray.bundle import code_version
from counterray.storage import Location
from jobs.reproduction.cit_lr.calibration import measure_calibration
from jobs.reproduction.cit_lr.experiment import (
    SETTINGS,
    CalibrationRun,
    Experiment,
    WorldRun,
    read_settings,
)
from jobs.reproduction.cit_lr.report import Outcome
from jobs.reproduction.cit_lr.world import measure_world
from jobs.reproduction.measuring import measure_all


@dataclass(frozen=True)
class CitLrExperiment:
    """The experiment, its settings checked."""

    config: Experiment

    @classmethod
    def read(cls, path: Path, overrides: list[str]) -> CitLrExperiment:
        """Reads its file; see `read_settings` for the errors."""
        return cls(read_settings(path, overrides))

    def measure(self, place: Location) -> Outcome:
        """Measures what is not there yet."""
        config = self.config
        runs = [WorldRun(config, name, seed) for seed in config.seeds for name in config.worlds]
        found = measure_all("world", measure_world, runs, place.uri, parallel=config.parallel)
        calibrations = [CalibrationRun(config, setting) for setting in SETTINGS]
        rates = measure_all(
            "calibration", measure_calibration, calibrations, place.uri, parallel=config.parallel
        )
        return Outcome(
            config,
            {
                name: [each for run, each in zip(runs, found, strict=True) if run.name == name]
                for name in config.worlds
            },
            {run.setting: rate for run, rate in zip(calibrations, rates, strict=True)},
            facts={
                "Code version": code_version(),
                "Seeds": ", ".join(map(str, config.seeds)),
                "Reading of the worlds": config.reading,
            },
        )
