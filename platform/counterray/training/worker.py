"""What every rank does: build, resume, then step, log, validate and checkpoint until the run is done."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from counterray.bundle import open_bundle
from counterray.data.batching import LoaderConfig, read_reports
from counterray.data.dataset import Dataset, DatasetInfo, open_dataset
from counterray.data.loader import Position, make_plan, stream
from counterray.data.study import Batch
from counterray.nn.ema import EMA
from counterray.storage import resolve
from counterray.training import checkpoint
from counterray.training.checkpoint import Progress, RankState
from counterray.training.config import TrainingConfig
from counterray.training.loop import require_finite
from counterray.training.metrics import TrainingMetrics
from counterray.training.stage import Losses, Stage
from counterray.training.tracking import Tracker

logger = logging.getLogger(__name__)

VOCABULARY_REPORTS = 50_000
"""Reports from which a stage may learn its vocabulary."""


@dataclass(frozen=True)
class Job:
    """One training run: what, on which data, to where. Sent to every worker.

    Attributes:
        stage: The stage, not built.
        config: The run's settings.
        data: URI of the dataset.
        out: URI of the run's folder.
        board: Handle of the actor that shows progress.
    """

    stage: Stage
    config: TrainingConfig
    data: str
    out: str
    board: Any = None


def dataset_info(stage: Stage, dataset: Dataset) -> DatasetInfo:
    """What ``stage`` may know of ``dataset``."""
    if not stage.needs_reports:
        return dataset.info()
    return dataset.info(read_reports(dataset, "train", limit=VOCABULARY_REPORTS))


def build(stage: Stage, config: TrainingConfig, dataset: Dataset) -> nn.Module:
    """Builds the stage's module with the run's seed; the same on every rank and at export."""
    torch.manual_seed(config.seed)
    inputs = {role: open_bundle(uri) for role, uri in config.inputs.items()}
    return stage.build(inputs, dataset_info(stage, dataset))


def train_on_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Entry point of a Ray Train worker; returns ``step``, ``metrics`` and, after a failure, ``failure``."""
    job: Job = settings["job"]
    if not job.config.resources.gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(job.config.resources.threads)
    with tempfile.TemporaryDirectory() as scratch:
        return Rank(job, Path(scratch)).run()


class Rank:
    """One rank of a run.

    Args:
        job: The run.
        scratch: A local folder that lives as long as the rank.
    """

    def __init__(self, job: Job, scratch: Path) -> None:
        from counterray.training.deepspeed import Engine

        context = ray.train.get_context()
        self.job, self.config, self.stage = job, job.config, job.stage
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.dataset = open_dataset(job.data)
        self.position = Position()
        module = build(self.stage, self.config, self.dataset)
        for judge in self.stage.frozen.values():
            judge.to(self.device)
        # Validation runs on a plain copy, so that it is the same under every ZeRO stage.
        self.plain = copy.deepcopy(module) if self.rank == 0 else None
        torch.manual_seed(self.config.seed + 1_000_003 * (self.rank + 1))
        saved = ray.train.get_checkpoint()
        self.tracker = self._tracker(scratch)
        self.metrics = TrainingMetrics(job.out.rsplit("/", 1)[-1], job.stage.name)
        self.waited = 0.0  # for data, since it was last shown [s]
        with saved.as_directory() if saved else nullcontext() as folder:
            self.progress = checkpoint.load_progress(Path(folder)) if folder else Progress()
            resized = self.progress.world_size != self.world_size and folder is not None
            universal = resized and self.config.engine.zero_stage > 0
            self.engine = Engine(self.stage, module, self.config, self.device, universal=universal)
            self.ema = self._average()
            if folder:
                self._restore(Path(folder), resized=resized)

    def run(self) -> dict[str, Any]:
        """Trains to the end."""
        config, started = self.config, time.monotonic()
        first = self.progress.step
        accumulation = config.engine.gradient_accumulation
        if self.plain is not None and first == 0:
            self._measure(self.plain)  # what validation cannot do is better known now than after training
        batches = self._batches()
        while self.progress.step < config.steps and not self.progress.stopped:
            step = self.progress.step
            for _ in range(accumulation):
                asked = time.monotonic()
                batch, self.position = next(batches)
                self.waited += time.monotonic() - asked
                losses = self.engine.micro_step(batch.to(self.device), step)
                failure = self._failure(losses, step)
                if failure:
                    return {"step": step, "failure": failure, "metrics": self.progress.metrics}
            self._update_average()
            self.progress = replace(self.progress, step=step + 1)
            if (step + 1) % config.log_every_steps == 0 or step == first:
                self._log(losses, (step + 1 - first) / (time.monotonic() - started))
            if (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == config.steps:
                self._validate_and_save()
        if self.tracker:
            self.tracker.publish()
            self.tracker.close()
        return {"step": self.progress.step, "metrics": self.progress.metrics}

    def _batches(self) -> Iterator[tuple[Batch, Position]]:
        plan = make_plan(
            self.dataset,
            "train",
            self.config.loader,
            seed=self.config.seed,
            rank=self.rank,
            world_size=self.world_size,
            masks=self.stage.needs_masks,
            tensors=self.stage.needs_tensors,
        )
        return stream(
            self.dataset,
            plan,
            self.config.loader,
            batch_size=self.config.batch_size,
            masks=self.stage.needs_masks,
            reports=self.stage.needs_reports,
            tensors=self.stage.needs_tensors,
            start=self.position,
            cpus=self.config.resources.data_cpus,
        )

    def _failure(self, losses: Losses, step: int) -> str:
        """Why this step is wrong on some rank, the same answer on every rank; empty if it is right."""
        message = ""
        try:
            require_finite(losses, step)
        except FloatingPointError as error:
            message = str(error)
        if self.world_size == 1:
            return message
        wrong = torch.tensor(float(bool(message)), device=self.device)
        torch.distributed.all_reduce(wrong)
        if not wrong.item():
            return ""
        messages: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(messages, message)
        return next(text for text in messages if text)

    def _log(self, losses: Losses, steps_per_second: float) -> None:
        if not self.tracker:
            return
        step = self.progress.step
        images = self.config.batch_size * self.config.engine.gradient_accumulation * self.world_size
        values = {name: float(value) for name, value in losses.parts.items()}
        values["loss"] = float(losses.total)
        values["lr"] = self.config.optimizer.rate(step - 1, self.config.steps)
        values["images_per_second"] = round(steps_per_second * images, 2)
        self.tracker.log("train", step, values)
        self.metrics.trained(
            step,
            loss=values["loss"],
            images_per_second=values["images_per_second"],
            waited=self.waited,
        )
        self.waited = 0.0
        if self.job.board is not None:
            name = self.job.out.rsplit("/", 1)[-1]
            self.job.board.update.remote(name, step, self.config.steps, values["loss"])

    def _average(self) -> EMA | None:
        """The moving average: on rank 0 only, since every rank sees the same whole weights."""
        if not self.config.ema_decay:
            return None
        with self.engine.whole_weights() as weights:
            return EMA(weights, self.config.ema_decay) if self.rank == 0 else None

    def _update_average(self) -> None:
        if not self.config.ema_decay:
            return
        with self.engine.whole_weights() as weights:
            if self.ema:
                self.ema.update(weights)

    def _validate_and_save(self) -> None:
        weights = {} if self.config.ema_decay else self.engine.master_weights()
        if self.ema:
            weights = {name: value.cpu() for name, value in self.ema.average.items()}
        shared: list[Progress | None] = [None]
        if self.rank == 0:
            shared = [self._validated(weights)]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(shared, src=0)
        assert shared[0] is not None
        self.progress = shared[0]
        self._save(weights)

    def _validated(self, weights: dict[str, Tensor]) -> Progress:
        assert self.plain is not None
        self.plain.load_state_dict(weights)
        metrics = self._measure(self.plain)
        return self.progress.after_validation(
            metrics,
            monitor=self.stage.monitor,
            direction=self.stage.direction,
            patience=self.config.checkpoint.patience,
        )

    def _measure(self, plain: nn.Module) -> dict[str, float]:
        """Validates and paints previews, without a trace in the random state."""
        assert self.tracker is not None
        module = plain.to(self.device).eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.config.seed)
            batches = self._validation()
            first = next(batches)
            metrics = {k: float(v) for k, v in self.stage.validate(module, chain([first], batches)).items()}
            for name, images in self.stage.preview(module, first).items():
                self.tracker.grid(name, self.progress.step, images)
        self.tracker.log("validation", self.progress.step, metrics)
        self.metrics.validated(metrics)
        return metrics

    def _validation(self) -> Iterator[Batch]:
        config = LoaderConfig(uncertainty=self.config.loader.uncertainty)
        masks, seen = self.stage.needs_masks, 0
        batches = stream(
            self.dataset,
            make_plan(
                self.dataset,
                "validation",
                config,
                seed=None,
                masks=masks,
                tensors=self.stage.needs_tensors,
            ),
            config,
            batch_size=self.config.batch_size,
            masks=masks,
            reports=self.stage.needs_reports,
            tensors=self.stage.needs_tensors,
            endless=False,
            cpus=self.config.resources.data_cpus,
        )
        for batch, _ in batches:
            yield batch.to(self.device)
            seen += len(batch)
            if seen >= self.config.checkpoint.validation_studies:
                return

    def _save(self, weights: dict[str, Tensor]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="counterray-checkpoint-"))
        try:
            self.engine.save(folder)
            state = RankState.capture(self.position.block, self.position.row)
            checkpoint.save_rank(folder, self.rank, state)
            if self.tracker:
                updates = self.ema.updates if self.ema else 0
                progress = replace(self.progress, world_size=self.world_size, ema_updates=updates)
                checkpoint.save_progress(folder, progress, weights)
                self.tracker.save(folder / "metrics.jsonl")
                self.tracker.publish()
            ray.train.report(
                self._report(),
                checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
                checkpoint_dir_name=f"checkpoint-{self.progress.step:08d}",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _report(self) -> dict[str, float]:
        value = self.progress.metrics[self.stage.monitor]
        score = value if self.stage.direction == "max" else -value
        finite = score == score and abs(score) != float("inf")
        return {"step": self.progress.step, "score": score if finite else -1e30}

    def _restore(self, folder: Path, *, resized: bool) -> None:
        self.engine.load(folder)
        weights = checkpoint.load_weights(folder)
        if self.ema:
            self.ema.average = {name: value.to(self.device) for name, value in weights.items()}
            self.ema.updates = self.progress.ema_updates
        if self.tracker:
            self.tracker.resume(folder / "metrics.jsonl")
        if resized:
            # Blocks are dealt to ranks in turn, so another number of ranks begins at a block's start.
            blocks = checkpoint.load_rank(folder, 0).block * self.progress.world_size
            self.position = Position(blocks // self.world_size)
            return
        state = checkpoint.load_rank(folder, self.rank)
        state.restore_randomness()
        self.position = Position(state.block, state.row)

    def _tracker(self, scratch: Path) -> Tracker | None:
        if self.rank != 0:
            return None
        out = resolve(self.job.out)
        return Tracker(out, scratch, mlflow=self.config.mlflow, run_name=out.uri.rsplit("/", 1)[-1])
