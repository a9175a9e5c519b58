"""A method from data to report in one go: ingest, train its stages as their inputs allow, evaluate, audit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from counterray import catalog
from counterray.data.ingest import ingest
from counterray.evaluation.opening import require_settings
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.storage import resolve
from counterray.training.config import ResourcesConfig
from counterray.training.progress import progress_board
from counterray.training.ray_train import DECODING_CPUS, most_cpus, train
from jobs.auditing.job import audit
from jobs.auditing.request import EXACT
from jobs.encoding import encode
from jobs.evaluation import evaluate
from jobs.pipeline_config import DATA, AuditRun, EncodeRun, PipelineConfig, StageRun
from jobs.refinement import refine

logger = logging.getLogger(__name__)


def run_pipeline(path: Path, config: PipelineConfig, *, root: str | None, out: str) -> Mapping[str, Any]:
    """Runs what is not done yet, and returns ``seconds`` and what evaluation and audit have to say.

    Args:
        path: The pipeline's file, from which its training files are found.
        config: Its content.
        root: Folder of the source's files, where the source needs one.
        out: Folder or ``s3://`` URI of everything that is made.
    """
    started = time.monotonic()
    place = resolve(out).uri
    prepared = {
        name: prepare(path, stage) for name, stage in config.stages.items() if isinstance(stage, StageRun)
    }
    if config.generator is not None:
        generator, _ = catalog.make_training(prepared[config.generator])
        require_settings(generator, config.evaluate.generation)
    data = f"{place}/{DATA}"
    manifest = ingest(config.ingest, root, data)
    studies = sum(int(split["studies"]) for split in manifest.counts.values())
    logger.info("data: %d studies after %.0f s", studies, time.monotonic() - started)
    if config.refine is not None:
        refined = refine(config.refine, data=data, out=f"{place}/refined")
        data = refined["dataset"]
        logger.info("reports: %d refined after %.0f s", refined["refined"], time.monotonic() - started)
    bundles = run_steps(config.stages, prepared, place=place, data=data, parallel=config.parallel)
    logger.info("trained %d stages after %.0f s", len(bundles), time.monotonic() - started)
    result: dict[str, Any] = {}
    if config.generator is not None:
        result |= evaluate(
            config.evaluate,
            model=bundles[config.generator],
            data=data,
            out=f"{place}/report",
            judges=[bundles[name] for name in config.judges],
        )
    if config.audit is not None:
        result["audit"] = run_audit(config.audit, bundles, data=data, out=f"{place}/audit")
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def run_audit(config: AuditRun, bundles: Mapping[str, str], *, data: str, out: str) -> Mapping[str, Any]:
    """Audits classifiers of the pipeline; what of it is done already is not done again.

    Args:
        config: Which, and how.
        bundles: Name of each training to its bundle.
        data: Dataset whose studies are audited.
        out: Folder of the audit.
    """
    return audit(
        config.settings,
        classifiers=[bundles[name] for name in config.classifiers],
        generator=EXACT if config.generator == EXACT else bundles[config.generator],
        data=data,
        attributes=config.attributes,
        judges=[bundles[name] for name in config.judges],
        out=out,
    )


def prepare(path: Path, stage: StageRun) -> dict[str, Any]:
    """A training's settings as plain values, checked before anything starts."""
    overrides = [f"{name}={value}" for name, value in stage.settings.items()]
    _, settings = catalog.read_training(path.parent / stage.config, overrides)
    return settings.model_dump(mode="json")


def run_steps(
    stages: Mapping[str, StageRun | EncodeRun],
    prepared: Mapping[str, dict[str, Any]],
    *,
    place: str,
    data: str,
    parallel: int,
) -> dict[str, str]:
    """Runs every step once what it needs is there; what is done already is not done again.

    Steps run side by side as long as their workers leave a CPU that decodes images.

    Args:
        stages: Name of each training or encoding, which is its folder below ``place``, to the step.
        prepared: Name of each training to its settings, see `prepare`.
        place: Folder or ``s3://`` URI.
        data: Dataset that stands for `DATA`.
        parallel: Steps at a time.

    Returns:
        Name of each step to its bundle or dataset.
    """
    done: dict[str, str] = {}
    waiting = dict(stages)
    running: dict[Any, str] = {}
    with progress_board() as board:
        while waiting or running:
            for name, stage in list(waiting.items()):
                if stage.needs <= set(done) and _fits(name, list(running.values()), prepared, parallel):
                    out = f"{place}/{name}"
                    if isinstance(stage, EncodeRun):
                        reference = _encode.remote(
                            stage.settings, data, done[stage.gsvae], done[stage.text], out
                        )
                    else:
                        inputs = {role: done[source] for role, source in stage.inputs.items()}
                        values = {**prepared[name], "inputs": inputs}
                        reference = _train_stage.remote(values, done.get(stage.data, data), out, board)
                    running[reference] = name
                    del waiting[name]
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            done[running.pop(finished)] = result_of(finished)
    return done


def _fits(name: str, running: Sequence[str], prepared: Mapping[str, dict[str, Any]], parallel: int) -> bool:
    """Whether a step can run beside others; alone any can be tried, and says itself what it lacks."""
    if not running:
        return True
    trainings = [step for step in (name, *running) if step in prepared]
    reserved = sum(ResourcesConfig.model_validate(prepared[step]["resources"]).cpus for step in trainings)
    return len(running) < parallel and reserved + DECODING_CPUS <= most_cpus()


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _encode(config: EncodeConfig, data: str, gsvae: str, text: str, out: str) -> str:
    return str(encode(config, data=data, gsvae=gsvae, text=text, out=out)["dataset"])


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _train_stage(values: dict[str, Any], data: str, out: str, board: Any) -> str:
    stage, settings = catalog.make_training(values)
    method = catalog.entry(stage.name).method
    return train(
        stage, settings, method=method, data=data, out=out, resume=True, board=board
    ).bundle.location.uri


def result_of(reference: Any) -> Any:
    """What a remote call returned; its own error, which is for the user, in place of Ray's."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
