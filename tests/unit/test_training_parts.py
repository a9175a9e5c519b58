"""The parts of a training that need no cluster: rates, progress, locks, folders, tracking."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve
from counterray.training import checkpoint
from counterray.training.checkpoint import Progress, RankState
from counterray.training.config import EngineConfig, OptimizerConfig
from counterray.training.loop import require_finite
from counterray.training.optimizer import make_optimizer, set_rates
from counterray.training.run_folder import STALE_SECONDS, RunError, RunLock, begin
from counterray.training.stage import Losses
from counterray.training.tracking import Tracker
from tests.predictor_toys import DATA

DESCRIPTION: dict[str, Any] = {
    "config": {"steps": 10, "resources": {"workers": 1}},
    "data_fingerprint": "f",
    "code_version": "v",
    "parents": {},
}


def test_the_rate_rises_linearly_then_falls_along_a_half_cosine() -> None:
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=4, final_lr_fraction=0.1)
    assert [optimizer.rate(step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert optimizer.rate(8, 12) == pytest.approx(0.1 + 0.9 * 0.5)
    assert optimizer.rate(12, 12) == pytest.approx(0.1)
    assert OptimizerConfig(lr=0.3, schedule="constant").rate(7, 12) == 0.3


def test_a_checkpoint_whose_groups_have_no_part_is_read_and_all_of_it_trained() -> None:
    """So were those written that are older than the parts."""
    stage = ClassifierStage(ClassifierConfig(backbone=BackboneConfig(widths=(8,), blocks=(1,))))
    module = stage.build({}, DATA)
    optimizer = make_optimizer(stage, module, OptimizerConfig(lr=1.0))
    optimizer.load_state_dict(torch.optim.AdamW(module.parameters(), lr=1.0).state_dict())
    assert "part" not in optimizer.param_groups[0]
    set_rates(optimizer, stage, 3, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]


def test_bf16_without_sharded_optimizer_names_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"engine\.zero_stage >= 1"):
        validate(EngineConfig, {"precision": "bf16"})


def test_progress_counts_validations_without_a_better_value() -> None:
    progress = Progress()
    values = [0.5, 0.7, 0.6, float("nan"), 0.8]
    seen = []
    for value in values:
        progress = progress.after_validation({"auroc": value}, monitor="auroc", direction="max", patience=2)
        seen.append((progress.best, progress.stale, progress.stopped))
    assert seen == [(0.5, 0, False), (0.7, 0, False), (0.7, 1, False), (0.7, 2, True), (0.8, 0, False)]


def test_a_monitored_metric_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="'auroc'"):
        Progress().after_validation({}, monitor="auroc", direction="max", patience=0)


def test_rank_state_continues_the_random_sequence(tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.rand(5)
    checkpoint.save_rank(tmp_path, 7, RankState.capture(block=2, row=11))
    expected = torch.rand(4)
    torch.manual_seed(99)
    state = checkpoint.load_rank(tmp_path, 7)
    state.restore_randomness()
    assert torch.equal(torch.rand(4), expected)
    assert (state.block, state.row) == (2, 11)


def test_progress_and_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    progress = Progress(step=4, world_size=2, best=0.5, metrics={"auroc": 0.5})
    weights = {"a": torch.randn(3, 2).t()}
    checkpoint.save_progress(tmp_path, progress, weights)
    assert checkpoint.load_progress(tmp_path) == progress
    assert torch.equal(checkpoint.load_weights(tmp_path)["a"], weights["a"])


def test_an_incomplete_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="incomplete"):
        checkpoint.load_progress(tmp_path)


def test_a_loss_that_is_not_finite_names_step_and_part() -> None:
    losses = Losses(torch.tensor(float("nan")), {"kl": torch.tensor(float("inf")), "mse": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match=r"step 12: kl\."):
        require_finite(losses, 12)
    require_finite(Losses(torch.tensor(1.0)), 0)


def test_a_lock_keeps_a_second_training_out_and_is_gone_afterwards(tmp_path: Path) -> None:
    out = resolve(tmp_path)
    with RunLock(out), pytest.raises(RunError, match="Another training is at work"), RunLock(out):
        pass
    with RunLock(out):
        pass
    assert not (tmp_path / "run.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    owner = {
        "token": "x",
        "host": socket.gethostname(),
        "process": int(dead.stdout),
        "heartbeat": time.time(),
    }
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    with RunLock(resolve(tmp_path)):
        pass


@pytest.mark.parametrize(("age", "free"), [(STALE_SECONDS + 5, True), (1.0, False)])
def test_the_lock_of_another_host_expires(tmp_path: Path, age: float, free: bool) -> None:
    owner = {"token": "x", "host": "elsewhere", "process": os.getpid(), "heartbeat": time.time() - age}
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    if free:
        with RunLock(resolve(tmp_path)):
            return
    with pytest.raises(RunError, match="elsewhere"), RunLock(resolve(tmp_path)):
        pass


def test_a_run_begins_once_and_goes_on_only_as_itself(tmp_path: Path) -> None:
    out = resolve(tmp_path)
    begin(out, DESCRIPTION, resume=False)
    with pytest.raises(RunError, match="Add --resume"):
        begin(out, DESCRIPTION, resume=False)
    begin(out, DESCRIPTION, resume=True)
    begin(out, {**DESCRIPTION, "config": {"steps": 10, "resources": {"workers": 8}}}, resume=True)
    with pytest.raises(RunError, match="differs in steps"):
        begin(out, {**DESCRIPTION, "config": {"steps": 11}}, resume=True)
    with pytest.raises(RunError, match="differs in data_fingerprint"):
        begin(out, {**DESCRIPTION, "data_fingerprint": "g"}, resume=True)


def test_tracking_continues_from_a_checkpoint_without_repeating_steps(tmp_path: Path) -> None:
    first = Tracker(resolve(tmp_path / "out"), tmp_path / "a", mlflow=False, run_name="run")
    first.log("train", 1, {"loss": 2.0})
    first.save(tmp_path / "metrics.jsonl")
    first.log("train", 2, {"loss": 1.5})
    first.close()
    (tmp_path / "b").mkdir()
    second = Tracker(resolve(tmp_path / "out"), tmp_path / "b", mlflow=False, run_name="run")
    second.resume(tmp_path / "metrics.jsonl")
    second.log("train", 2, {"loss": 1.4})
    second.grid("swap", 2, torch.rand(3, 1, 8, 8) * 2 - 1, columns=2)
    second.publish()
    second.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 2.0), (2, 1.4)]
    assert (tmp_path / "out" / "images" / "step-0000002-swap.png").stat().st_size > 0
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_mlflow_receives_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    tracker = Tracker(resolve(tmp_path / "out"), tmp_path, mlflow=True, run_name="run")
    tracker.log("train", 3, {"loss": 0.25, "bad": float("nan")})
    tracker.close()
    assert tracker.mlflow is not None
    client = mlflow.MlflowClient(uri)
    run = client.get_run(tracker.mlflow.run_id)
    assert run.data.metrics == {"train/loss": 0.25}
    assert run.info.status == "FINISHED"
