"""Runs any stage on Ray Train with DeepSpeed and leaves a bundle behind."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray._private.state import state
from ray.train.torch import TorchConfig, TorchTrainer

from counterray.bundle import Bundle, code_version, open_bundle, write_bundle
from counterray.data.dataset import Dataset, open_dataset
from counterray.storage import Location, resolve
from counterray.training import checkpoint
from counterray.training.config import ResourcesConfig, TrainingConfig
from counterray.training.progress import progress_board
from counterray.training.run_folder import RunError, RunLock, begin
from counterray.training.stage import Stage
from counterray.training.worker import Job, build, train_on_worker

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_SECONDS = 1800
"""How long ranks wait for each other; rank 0 validates alone meanwhile."""

DECODING_CPUS = 1.0
"""CPUs that trainings must leave to Ray Data, whose tasks decode images; without, they wait for ever."""

OUR_ERRORS = ("StorageError", "MissingError", "BundleError", "ConfigError")
"""Errors whose message says what a user can do, also when they happened in a data worker."""


@dataclass(frozen=True)
class Trained:
    """A finished training: its bundle and the metrics of the exported checkpoint's validation."""

    bundle: Bundle
    metrics: Mapping[str, float]


def train(
    stage: Stage,
    config: TrainingConfig,
    *,
    method: str,
    data: str,
    out: str,
    resume: bool = False,
    board: Any = None,
) -> Trained:
    """Trains ``stage`` and writes ``<out>/bundle``.

    Args:
        stage: What to train, not built.
        config: The run's settings, with the stage's own; saved in ``run.json`` and in the bundle.
        method: The method's name in the catalog.
        data: URI of an ingested dataset.
        out: URI of the run's folder, of this run alone.
        resume: Whether to continue the run that ``out`` holds; without one, it begins.
        board: Actor that shows the progress of several trainings; its own by default.

    Raises:
        RunError: If the folder cannot be used, or training failed; the message gives the cause.
        StorageError: If the data or the folder cannot be read or written.
    """
    place = resolve(out)
    dataset = open_dataset(data)
    dataset.require_split("train")
    dataset.require_split("validation")
    parents = {role: open_bundle(uri) for role, uri in config.inputs.items()}
    _require_inputs(stage, parents)
    _require_tensors(stage, dataset)
    _require_room(config.resources)
    with RunLock(place):
        begin(place, _description(config, dataset, parents), resume=resume)
        if (place / "bundle" / "manifest.json").exists():
            logger.info("%s is trained already", place.uri)
            bundle = open_bundle(place / "bundle")
            return Trained(bundle, bundle.metrics)
        with nullcontext(board) if board is not None else progress_board() as shown:
            result = _fit(Job(stage, config, dataset.location.uri, place.uri, shown), place)
        return _export(stage, config, method, dataset, place, parents, result)


def most_cpus() -> float:
    """CPUs of the cluster, with those that its autoscaler may add."""
    scaled = state.get_max_resources_from_cluster_config() or {}
    return float(max(scaled.get("CPU", 0), ray.cluster_resources().get("CPU", 0)))


def _require_room(resources: ResourcesConfig) -> None:
    there = most_cpus()
    if resources.cpus + DECODING_CPUS > there:
        raise RunError(
            f"resources.workers = {resources.workers} of resources.cpus_per_worker = "
            f"{resources.cpus_per_worker:g} leave no CPU to decode images with: Ray has {there:g} CPUs, of "
            f"which workers may reserve {there - DECODING_CPUS:g}. Lower one of them."
        )


def _fit(job: Job, place: Location) -> ray.train.Result:
    config, resources = job.config, job.config.resources
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpu,
            accelerator_type=resources.accelerator_type,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": 1} if resources.gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=place.path,
            storage_filesystem=place.filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=3
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.checkpoint.keep,
                checkpoint_score_attribute="score",
                checkpoint_score_order="max",
            ),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunError(
            f"Training in {place.uri} failed: {_cause(error)} Mend the cause and run the same "
            "command with --resume; it goes on from the last checkpoint, or begins where there is none yet."
        ) from error
    failure = (result.return_value or {}).get("failure")
    if failure:
        raise RunError(failure)
    return result


def _export(
    stage: Stage,
    config: TrainingConfig,
    method: str,
    dataset: Dataset,
    place: Location,
    parents: Mapping[str, Bundle],
    result: ray.train.Result,
) -> Trained:
    chosen = result.checkpoint
    if config.checkpoint.export == "best":
        chosen = max(result.best_checkpoints, key=lambda pair: pair[1]["score"])[0]
    with chosen.as_directory() as folder:
        weights = checkpoint.load_weights(Path(folder))
        progress = checkpoint.load_progress(Path(folder))
    module = build(stage, config, dataset)
    module.load_state_dict(weights)
    export = stage.export(module.eval())
    bundle = write_bundle(
        place / "bundle",
        method=method,
        stage=stage.name,
        config=config.model_dump(mode="json"),
        export=export,
        parents=parents,
        judges={role: parent.checksum for role, parent in parents.items()},
        data_fingerprint=dataset.manifest.fingerprint,
        metrics=progress.metrics,
        training={
            "optimizer steps": progress.step,
            "workers": progress.world_size,
            "source": dataset.manifest.source,
            "training studies": dataset.rows("train"),
            "validation studies at most": _validated(config, dataset),
        },
    )
    return Trained(bundle, progress.metrics)


def _validated(config: TrainingConfig, dataset: Dataset) -> int:
    """Most studies that a validation reads; a fold, labels not known or a stage's own limit leave fewer."""
    batches = -(-config.checkpoint.validation_studies // config.batch_size)
    return min(dataset.rows("validation"), batches * config.batch_size)


def _description(config: TrainingConfig, dataset: Dataset, parents: Mapping[str, Bundle]) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "data_fingerprint": dataset.manifest.fingerprint,
        "parents": {role: parent.checksum for role, parent in parents.items()},
        "code_version": code_version(),
    }


def _require_tensors(stage: Stage, dataset: Dataset) -> None:
    missing = sorted(set(stage.needs_tensors) - set(dataset.manifest.tensors))
    if missing:
        raise RunError(
            f"{stage.name} trains on {', '.join(missing)} of each study, which the dataset at "
            f"{dataset.location.uri} does not carry. Make them once with python -m jobs encode, and train on "
            "its result."
        )


def _require_inputs(stage: Stage, parents: Mapping[str, Bundle]) -> None:
    for role, kind in stage.inputs.items():
        if role not in parents:
            raise RunError(
                f"Stage {stage.name} needs the bundle of a stage {kind}: set inputs.{role} to its folder "
                "or s3:// URI."
            )
        parents[role].expect(kind)
    unknown = sorted(set(parents) - set(stage.inputs))
    if unknown:
        raise RunError(
            f"inputs.{unknown[0]}: stage {stage.name} has no such input. It takes: "
            f"{', '.join(stage.inputs) or 'none'}."
        )


def _cause(error: BaseException) -> str:
    """The message behind a failed fit, without Ray's tracebacks: ours, if one of our errors is in them."""
    text, link = "", next(iter(getattr(error, "worker_failures", {}).values()), error)
    while link is not None:
        text += f"\n{type(link).__name__}: {link}"
        link = getattr(link, "cause", None) or link.__cause__
    found = re.findall(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", text, flags=re.MULTILINE)
    ours = [pair for pair in found if pair[0] in OUR_ERRORS]
    name, message = (ours or found or [(type(error).__name__, str(error))])[-1]
    return f"{name}: {message}"
