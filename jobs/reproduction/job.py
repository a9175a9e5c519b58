"""Runs an experiment and writes its tables; what is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from counterray.config import ConfigError
from counterray.evaluation.report import Report
from counterray.storage import Location, resolve
from jobs.reproduction.causal_disentanglement.job import CausalDisentanglement
from jobs.reproduction.cit_lr.job import CitLrExperiment
from jobs.reproduction.counterfactual_audit.job import CounterfactualAudit


class Outcome(Protocol):
    """All that an experiment has measured."""

    def tables(self) -> dict[str, Any]:
        """Plain values, with ``bars`` and ``contradictions`` among them."""

    def report(self) -> Report:
        """The page."""


class Experiment(Protocol):
    """A paper's experiment, its settings checked."""

    def measure(self, place: Location) -> Outcome:
        """Makes and measures what is not there yet.

        Raises:
            RunError: If a training fails, or ``place`` holds another experiment.
            StorageError: If something cannot be read or written.
        """


_EXPERIMENTS: Mapping[str, Callable[[Path, list[str]], Experiment]] = {
    "causal_disentanglement": CausalDisentanglement.read,
    "cit_lr": CitLrExperiment.read,
    "counterfactual_audit": CounterfactualAudit.read,
}
"""Name of each experiment's file to what reads it; a new experiment is added here."""


def read_experiment(path: Path, overrides: list[str]) -> Experiment:
    """Reads an experiment's YAML.

    Raises:
        ConfigError: If there is none of that name, or a setting is unknown or refused.
    """
    if not path.is_file() or path.stem not in _EXPERIMENTS:
        raise ConfigError(
            f"There is no experiment {path.stem!r}. Available: {', '.join(sorted(_EXPERIMENTS))}."
        )
    return _EXPERIMENTS[path.stem](path, overrides)


def reproduce(experiment: Experiment, *, out: str) -> Mapping[str, Any]:
    """Runs what is not done yet; writes ``tables.json`` and ``report.html``.

    Args:
        experiment: The experiment.
        out: Folder or ``s3://`` URI of everything that is made.

    Returns:
        ``report``, ``tables``, ``bars`` (each with ``met``), ``contradictions``, ``seconds``.

    Raises:
        RunError: If a training fails, or ``out`` holds another experiment.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    place = resolve(out)
    outcome = experiment.measure(place)
    tables = outcome.tables()
    (place / "tables.json").write_json(tables)
    (place / "report.html").write_bytes(outcome.report().render().encode())
    return {
        "report": (place / "report.html").uri,
        "tables": (place / "tables.json").uri,
        "bars": tables["bars"],
        "contradictions": tables["contradictions"],
        "seconds": round(time.monotonic() - started, 1),
    }
