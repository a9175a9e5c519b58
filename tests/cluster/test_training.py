"""Training on a real Ray with a real DeepSpeed engine: it survives, resumes and says what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from counterray import catalog
from counterray.bundle import open_bundle
from counterray.data.dataset import Dataset
from counterray.storage import StorageError, resolve
from counterray.training.run_folder import RunError, RunLock
from tests.cluster.runs import fit, killing_a_worker_after

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def data(phantom_dataset: Dataset) -> str:
    return phantom_dataset.location.uri


@pytest.fixture(scope="module")
def uninterrupted(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights after an undisturbed run of one worker."""
    return fit(tmp_path_factory.mktemp("whole") / "run", data).bundle.tensors()


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_a_run_leaves_a_bundle_metrics_and_events(data: str, tmp_path: Path) -> None:
    trained = fit(tmp_path / "run", data, ema_decay=0.9)
    bundle = open_bundle(str(tmp_path / "run" / "bundle"))
    assert bundle.checksum == trained.bundle.checksum
    assert (
        bundle.manifest["data_fingerprint"]
        == json.loads((Path(data) / "manifest.json").read_text())["fingerprint"]
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in lines if line["split"] == "validation"] == [0, 4, 8]
    rates = [line["lr"] for line in lines if line["split"] == "train"]
    assert rates[:2] == pytest.approx([5e-4, 1e-3])
    assert rates[-1] < rates[3] < rates[2]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert not (tmp_path / "run" / "run.lock").exists()
    module = catalog.load_model(bundle)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_equal_seeds_give_equal_weights(
    data: str, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    assert distance(fit(tmp_path / "again", data).bundle.tensors(), uninterrupted) == 0
    assert distance(fit(tmp_path / "other", data, seed=1).bundle.tensors(), uninterrupted) > 0


def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(
    data: str, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    saved = tmp_path / "run" / "ray" / "checkpoint-00000004" / "progress.json"
    with killing_a_worker_after(saved.exists) as killed:
        trained = fit(tmp_path / "run", data)
    assert killed
    assert distance(trained.bundle.tensors(), uninterrupted) == 0


def test_gradient_accumulation_equals_a_larger_batch(data: str, tmp_path: Path) -> None:
    halves = fit(
        tmp_path / "run", data, batch_size=8, augmentation="none", engine={"gradient_accumulation": 2}
    )
    whole = fit(tmp_path / "whole", data, augmentation="none")
    ours, theirs = halves.bundle.tensors(), whole.bundle.tensors()
    # Adam's first steps follow the sign of a gradient, so rounding moves single weights by a whole step.
    mean = sum(float((ours[name] - theirs[name]).abs().mean()) for name in ours) / len(ours)
    assert mean < 1e-4


@pytest.fixture(scope="module")
def two_workers(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of two workers that shard nothing."""
    out = tmp_path_factory.mktemp("zero") / "run"
    return fit(out, data, resources={"workers": 2}, ema_decay=0.5).bundle.tensors()


@pytest.mark.parametrize(
    "zero_stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly), 3]
)
def test_every_zero_stage_exports_the_same_weights_and_resumes_on_one_worker(
    data: str, tmp_path: Path, two_workers: dict[str, torch.Tensor], zero_stage: int
) -> None:
    engine = {"zero_stage": zero_stage}
    run = {"ema_decay": 0.5, "engine": engine}
    sharded = fit(tmp_path / "whole", data, resources={"workers": 2}, **run)
    assert distance(sharded.bundle.tensors(), two_workers) < 1e-6

    saved = tmp_path / "lost" / "ray" / "checkpoint-00000004" / "progress.json"
    with killing_a_worker_after(saved.exists), pytest.raises(RunError, match="--resume"):
        fit(tmp_path / "lost", data, resources={"workers": 2, "max_failures": 0}, **run)
    resumed = fit(tmp_path / "lost", data, resume=True, **run)
    assert json.loads((tmp_path / "lost" / "bundle" / "manifest.json").read_text())["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "lost" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    # From step 5 on one worker sees other images than two did, so the weights are near, not equal.
    assert 0 < distance(resumed.bundle.tensors(), two_workers) < 0.05


def test_bf16_keeps_fp32_master_weights(data: str, tmp_path: Path) -> None:
    trained = fit(tmp_path / "run", data, engine={"zero_stage": 1, "precision": "bf16"})
    weights = trained.bundle.tensors()
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_part(data: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite at step \d+: cross_entropy"):
        fit(tmp_path / "run", data, optimizer={"lr": 1e30, "clip_norm": 0.0, "warmup_steps": 0})


def test_early_stopping_ends_a_run(data: str, tmp_path: Path) -> None:
    fit(
        tmp_path / "run",
        data,
        steps=40,
        optimizer={"lr": 1e-12},
        checkpoint={"patience": 1, "every_steps": 2},
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) < 40


def test_a_second_training_into_the_same_folder_is_refused(data: str, tmp_path: Path) -> None:
    out = resolve(str(tmp_path / "run"))
    with RunLock(out), pytest.raises(RunError, match="Another training is at work"):
        fit(tmp_path / "run", data)


def test_workers_that_leave_no_cpu_to_decode_with_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="may reserve 3") as raised:
        fit(tmp_path / "run", data, resources={"workers": 4, "cpus_per_worker": 1.0})
    assert str(raised.value).startswith("resources.workers = 4 of resources.cpus_per_worker = 1 leave no CPU")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_needs_resume_and_the_same_settings(data: str, tmp_path: Path) -> None:
    fit(tmp_path / "run", data, steps=2)
    with pytest.raises(RunError, match="Add --resume"):
        fit(tmp_path / "run", data, steps=2)
    assert fit(tmp_path / "run", data, steps=2, resume=True).metrics
    shutil.rmtree(tmp_path / "run" / "bundle")
    with pytest.raises(RunError, match=r"differs in optimizer.*Free to change"):
        fit(tmp_path / "run", data, steps=2, resume=True, optimizer={"lr": 0.5})


def test_a_stage_with_inputs_names_the_one_that_is_missing(data: str, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"gsvae needs the bundle of a stage identity_encoder: set inputs.identity"
    ):
        fit(tmp_path / "run", data, stage="gsvae", backbone=None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(
    data: str, small_disk: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200 << 10))
    with pytest.raises((RunError, StorageError), match="No space left on device"):
        fit(small_disk / "run", data, resources={"max_failures": 0})
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    resumed = fit(small_disk / "run", data, resume=True)
    assert distance(resumed.bundle.tensors(), uninterrupted) == 0


def test_a_damaged_shard_is_named(phantom_dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(phantom_dataset.location.path, tmp_path / "data")
    shard = next((tmp_path / "data" / "train").glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=rf"{shard.name}.*truncated"):
        fit(tmp_path / "run", str(tmp_path / "data"))
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(RunError, match=rf"{shard.name}.*damaged"):
        fit(tmp_path / "run", str(tmp_path / "data"), resources={"max_failures": 0})
