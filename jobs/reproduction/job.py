"""Runs an experiment: data, trainings, measurements, tables; what is done is not done again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from counterray.bundle import code_version, open_bundle
from counterray.data.dataset import open_dataset
from counterray.data.ingest import ingest
from counterray.storage import resolve
from jobs.pipeline import result_of, run_steps
from jobs.refinement import refine
from jobs.reproduction.bench import Bench, Kind
from jobs.reproduction.experiment import Experiment, Plan
from jobs.reproduction.rare import rare_edits
from jobs.reproduction.report import Outcome
from jobs.reproduction.scores import score_arm
from jobs.reproduction.utility import measure_utility

logger = logging.getLogger(__name__)

Measurement = Callable[[Bench], dict[str, Any]]


def reproduce(config: Experiment, plan: Plan, *, out: str) -> Mapping[str, Any]:
    """Runs what is not done yet; writes ``tables.json`` and ``report.html``.

    Args:
        config: The experiment.
        plan: Its steps.
        out: Folder or ``s3://`` URI of everything that is made.

    Returns:
        ``report``, ``tables``, ``bars`` (each with ``met``), ``contradictions``, ``seconds``.

    Raises:
        RunError: If a training fails, or ``out`` holds another experiment.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    place = resolve(out)
    ingest(config.ingest, None, f"{place.uri}/data")
    data = str(refine(config.refine, data=f"{place.uri}/data", out=f"{place.uri}/refined")["dataset"])
    logger.info("data after %.0f s; %d steps", time.monotonic() - started, len(plan.stages))
    made = run_steps(plan.stages, plan.prepared, place=place.uri, data=data, parallel=config.parallel)
    logger.info("trained after %.0f s", time.monotonic() - started)
    outcome = _measure(config, _benches(config, plan, made, data), made, data, place.uri)
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
    scores = _all("scores", score_arm, list(benches.values()), place, parallel=config.parallel)
    utility = _all("utility", measure_utility, full, place, parallel=config.parallel)
    # Timed, so one at a time with nothing beside it.
    rare = _all("rare", rare_edits, full, place, parallel=1)
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


def _all(
    kind: Kind, measurement: Measurement, benches: Sequence[Bench], place: str, *, parallel: int
) -> list[dict[str, Any]]:
    """The measurement of every bench, in their order, ``parallel`` at a time on Ray."""
    results: dict[int, dict[str, Any]] = {}
    waiting, running = list(enumerate(benches)), dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < parallel:
            index, bench = waiting.pop(0)
            file = f"{place}/seed-{bench.seed}/{bench.arm}/{kind}.json"
            running[_measured.remote(measurement, bench, file, kind)] = index
        (finished, *_), _ = ray.wait(list(running), num_returns=1)
        index = running.pop(finished)
        results[index] = result_of(finished)
        logger.info("%s: %d of %d", kind, len(results), len(benches))
    return [results[index] for index in range(len(benches))]


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def _measured(measurement: Measurement, bench: Bench, file: str, kind: Kind) -> dict[str, Any]:
    place, request = resolve(file), bench.request(kind)
    if place.exists():
        before: dict[str, Any] = place.read_json()
        if before["request"] == request:
            return before
    result: dict[str, Any] = plain({"request": request, "seed": bench.seed, **measurement(bench)})
    place.write_json(result)
    return result


def plain(value: Any) -> Any:
    """The same with ``None`` for numbers that are not finite, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
