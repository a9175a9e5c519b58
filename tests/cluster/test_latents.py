"""From studies to latents to a text-guided generator on Ray and DeepSpeed: exact, resumable, or refused."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterray import catalog
from counterray.bundle import Bundle, BundleError, open_bundle
from counterray.data.batching import LoaderConfig, read_batches, read_reports
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.loader import make_plan, stream
from counterray.models.gsvae.stages import load as load_gsvae
from counterray.models.pathology_ldm.encoding import (
    IDENTITY,
    PATHOLOGY,
    PRESENT,
    STATES,
    EncodeConfig,
)
from counterray.models.pathology_ldm.stages import load
from counterray.models.pathology_ldm.text import TowerText, TowerTextEncoder
from counterray.models.predictors.image_text import load as load_text
from counterray.storage import StorageError
from counterray.training.run_folder import RunError
from jobs.encoding import encode
from tests.cluster.bundles import bundle_of
from tests.cluster.runs import fit, killing_a_worker_after

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

CONFIG = EncodeConfig(prompts="report", text=TowerText(context=24))
SMALL = {"backbone": {"widths": [8, 16], "blocks": [1, 1]}}


@pytest.fixture(scope="module")
def parents(phantom_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Untrained gsvae and image-text encoder of the phantom's size."""
    folder = tmp_path_factory.mktemp("parents")
    gsvae, _ = catalog.make_training(
        {
            "stage": "gsvae",
            "network": {"widths": [8, 16], "transformer_width": 16, "transformer_layers": 1},
            "weights": {"identity": 0, "pathology": 0},
        }
    )
    text, _ = catalog.make_training({"stage": "image_text_encoder", **SMALL})
    reported = phantom_dataset.info(read_reports(phantom_dataset, "train", limit=200))
    return {
        "gsvae": bundle_of(gsvae, folder / "gsvae", phantom_dataset),
        "text": bundle_of(text, folder / "text", phantom_dataset, info=reported),
    }


@pytest.fixture(scope="module")
def latents(
    phantom_dataset: Dataset, parents: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    out = tmp_path_factory.mktemp("latents") / "dataset"
    encode(CONFIG, **arguments(phantom_dataset, parents, out))
    return open_dataset(str(out))


def arguments(dataset: Dataset, parents: dict[str, Bundle], out: Path) -> dict[str, str]:
    return {
        "data": dataset.location.uri,
        "gsvae": parents["gsvae"].location.uri,
        "text": parents["text"].location.uri,
        "out": str(out),
    }


def test_latents_are_those_of_the_encoders_row_by_row(
    phantom_dataset: Dataset, latents: Dataset, parents: dict[str, Bundle]
) -> None:
    gsvae = load_gsvae(parents["gsvae"])
    text = TowerTextEncoder(load_text(parents["text"]), context=24)
    names = (PATHOLOGY, IDENTITY, STATES, PRESENT)
    before = next(read_batches(phantom_dataset, "test", batch_size=40, reports=True))
    after = next(read_batches(latents, "test", batch_size=40, reports=True, tensors=names))
    assert after.image_ids == before.image_ids
    assert torch.equal(after.image, before.image)
    with torch.no_grad():
        mean, _ = gsvae.encode(before.image)
    states = text.encode(before.reports)
    torch.testing.assert_close(after.tensors[PATHOLOGY], mean[:, -1:], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(after.tensors[IDENTITY], mean[:, :-1], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(after.tensors[STATES], states.states, atol=4e-3, rtol=1e-3)
    assert torch.equal(after.tensors[PRESENT] > 0.5, states.present)


def test_the_manifest_knows_mean_and_deviation_of_the_training_split(latents: Dataset) -> None:
    values = torch.cat(
        [
            batch.tensors[PATHOLOGY].flatten()
            for batch in read_batches(latents, "train", batch_size=256, tensors=(PATHOLOGY,))
        ]
    ).double()
    info = latents.manifest.tensors[PATHOLOGY]
    assert info.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert info.std == pytest.approx(float(values.std(unbiased=False)), rel=1e-6)


def test_running_again_writes_nothing_and_a_lost_shard_alone_is_made_anew(
    phantom_dataset: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    given = arguments(phantom_dataset, parents, tmp_path / "out")
    first = encode(CONFIG, **given)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")}
    assert encode(CONFIG, **given) == first
    assert {file: file.stat().st_mtime_ns for file in files} == files
    lost = min(files)
    content = lost.read_bytes()
    lost.unlink()
    assert encode(CONFIG, **given) == first
    assert lost.read_bytes() == content
    changed = [file for file, time in files.items() if file.stat().st_mtime_ns != time]
    assert changed == [lost]


def test_a_folder_of_something_else_is_refused(
    phantom_dataset: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    given = arguments(phantom_dataset, parents, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds files, but no encoded dataset"):
        encode(CONFIG, **given)
    (tmp_path / "out" / "notes.txt").unlink()
    encode(CONFIG, **given)
    with pytest.raises(StorageError, match="with other settings"):
        encode(CONFIG.model_copy(update={"prompts": "labels"}), **given)


def test_a_damaged_bundle_is_named_with_its_option(
    phantom_dataset: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    """Only a worker reads the gsvae's weights."""
    damaged = Path(shutil.copytree(parents["gsvae"].location.uri, tmp_path / "gsvae"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    given = {**arguments(phantom_dataset, parents, tmp_path / "out"), "gsvae": str(damaged)}
    with pytest.raises(BundleError, match=rf"^--gsvae: .*{damaged.name}.*model\.safetensors"):
        encode(CONFIG, **given)


def test_rare_findings_are_shown_more_often_and_the_order_is_the_same_every_time(
    phantom_dataset: Dataset,
) -> None:
    names = phantom_dataset.manifest.finding_names
    rarest = int(np.argmin(phantom_dataset.manifest.prevalence(names)))

    def shown(balance: float) -> tuple[float, list[str]]:
        config = LoaderConfig(block_studies=512, balance=balance)
        plan = make_plan(phantom_dataset, "train", config, seed=1)
        batches = [batch for batch, _ in islice(stream(phantom_dataset, plan, config, batch_size=64), 6)]
        share = torch.cat([batch.findings[:, rarest] for batch in batches]).mean()
        return float(share), [name for batch in batches for name in batch.image_ids]

    plain, balanced = shown(0.0), shown(1.0)
    assert balanced[0] > 2 * plain[0] > 0
    assert balanced == shown(1.0)


def training(parents: dict[str, Bundle]) -> dict[str, Any]:
    return {
        "stage": "pathology_ldm",
        "backbone": None,
        "denoiser": {"widths": [8, 16], "head_width": 8, "norm_groups": 4},
        "sampler": {"steps": 4},
        "validation_draws": 32,
        "ema_decay": 0.5,
        "inputs": {role: bundle.location.uri for role, bundle in parents.items()},
    }


def test_it_trains_resumes_to_the_bit_and_exports_all_that_generating_needs(
    latents: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    settings = training(parents)
    whole = fit(tmp_path / "whole", latents.location.uri, **settings)
    lost = tmp_path / "lost"
    saved = lost / "ray" / "checkpoint-00000004" / "progress.json"
    with killing_a_worker_after(saved.exists), pytest.raises(RunError, match="--resume"):
        fit(lost, latents.location.uri, **{**settings, "resources": {"max_failures": 0}})
    again = fit(lost, latents.location.uri, resume=True, **settings)
    for name in ("model", "gsvae", "text"):
        ours, theirs = again.bundle.tensors(name), whole.bundle.tensors(name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert {"auroc_macro", "loss_denoising"} <= whole.metrics.keys()
    model = load(open_bundle(whole.bundle.location))
    seeds = torch.arange(2)
    drawn = model.draw(model.prompts(["Severe edema.", ""]), noise=model.noise(seeds), seeds=seeds)
    assert bool(drawn.isfinite().all())


def test_studies_without_latents_are_refused(
    phantom_dataset: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"pathology, text_present, text_states .* jobs encode"):
        fit(tmp_path / "run", phantom_dataset.location.uri, **training(parents))


def test_zero_2_trains_the_same_weights_as_the_plain_engine(
    latents: Dataset, parents: dict[str, Bundle], tmp_path: Path
) -> None:
    settings = training(parents)
    plain = fit(tmp_path / "plain", latents.location.uri, **settings).bundle.tensors()
    sharded = fit(tmp_path / "zero", latents.location.uri, **{**settings, "engine": {"zero_stage": 2}})
    ours = sharded.bundle.tensors()
    assert max(float((ours[name] - plain[name]).abs().max()) for name in plain) < 1e-5
