"""The three stages of mine_ldm on Ray and DeepSpeed: turns under every engine, exact resume, then edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from counterray.bundle import Bundle, open_bundle
from counterray.data.dataset import Dataset
from counterray.training.run_folder import RunError
from jobs.generation.job import generate
from jobs.generation.request import GenerateConfig, GenerationError
from tests.cluster.runs import fit, killing_a_worker_after

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

VAE: dict[str, Any] = {
    "stage": "mine_vae",
    "backbone": None,
    "network": {"latent_channels": 4, "widths": [8, 16], "strides": [2, 2]},
    "weights": {"perceptual": 0},
}
PERTURBATION: dict[str, Any] = {
    "stage": "mine_perturbation",
    "backbone": None,
    "attributes": ["sex", "scanner"],
    "perturbation": {"widths": [8, 16]},
    "critic": {"widths": [8, 16], "blocks": 1},
    "critic_steps": 2,
}
LDM: dict[str, Any] = {
    "stage": "mine_ldm",
    "backbone": None,
    "attributes": ["sex", "scanner"],
    "denoiser": {"widths": [8, 16], "head_width": 8, "norm_groups": 4, "layers_per_block": 1},
    "token_width": 8,
    "sampler": {"steps": 10, "guidance_scale": 1.0},
    "validation_draws": 16,
    "ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def vae(phantom_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit(tmp_path_factory.mktemp("vae") / "run", phantom_dataset.location.uri, **VAE).bundle


@pytest.fixture(scope="module")
def perturbation(phantom_dataset: Dataset, vae: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("perturbation") / "run"
    return fit(out, phantom_dataset.location.uri, **with_inputs(PERTURBATION, vae=vae)).bundle


@pytest.fixture(scope="module")
def generator(
    phantom_dataset: Dataset, vae: Bundle, perturbation: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    settings = with_inputs(LDM, vae=vae, perturbation=perturbation)
    return fit(tmp_path_factory.mktemp("ldm") / "run", phantom_dataset.location.uri, **settings).bundle


def with_inputs(settings: dict[str, Any], **inputs: Bundle) -> dict[str, Any]:
    return {**settings, "inputs": {role: bundle.location.uri for role, bundle in inputs.items()}}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def lose_and_resume(out: Path, data: str, settings: dict[str, Any]) -> Bundle:
    """A run whose worker was killed after its first checkpoint, continued."""
    saved = out / "ray" / "checkpoint-00000004" / "progress.json"
    with killing_a_worker_after(saved.exists), pytest.raises(RunError, match="--resume"):
        fit(out, data, **{**settings, "resources": {"max_failures": 0}})
    return fit(out, data, resume=True, **settings).bundle


def test_the_critic_and_the_perturbation_resume_to_the_bit_in_the_middle_of_a_round(
    phantom_dataset: Dataset, vae: Bundle, perturbation: Bundle, tmp_path: Path
) -> None:
    """Both parts, their moments, and the moving average; the 4th step is in a second round."""
    settings = with_inputs(PERTURBATION, vae=vae)
    again = lose_and_resume(tmp_path / "run", phantom_dataset.location.uri, settings)
    for part in ("model", "critic"):
        assert distance(again.tensors(part), perturbation.tensors(part)) == 0
    assert float(again.tensors("critic")["log_average"]) != 0


def test_the_vae_resumes_with_its_running_moments(
    phantom_dataset: Dataset, vae: Bundle, tmp_path: Path
) -> None:
    again = lose_and_resume(tmp_path / "run", phantom_dataset.location.uri, VAE)
    assert distance(again.tensors(), vae.tensors()) == 0
    assert int(again.tensors()["observed"]) == 8


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_turns_are_the_same_under_every_zero_stage(
    phantom_dataset: Dataset, vae: Bundle, perturbation: Bundle, tmp_path: Path, zero_stage: int
) -> None:
    """Sharded engines put zeros in the place of gradients that there are none of."""
    settings = {**with_inputs(PERTURBATION, vae=vae), "engine": {"zero_stage": zero_stage}}
    sharded = fit(tmp_path / "run", phantom_dataset.location.uri, **settings).bundle
    for part in ("model", "critic"):
        assert distance(sharded.tensors(part), perturbation.tensors(part)) < 1e-5


def test_images_of_another_sex_are_generated_by_name(
    phantom_dataset: Dataset, generator: Bundle, tmp_path: Path
) -> None:
    places = {"model": generator.location.uri, "data": phantom_dataset.location.uri}
    asked = GenerateConfig(do={"sex": "male", "scanner": 2}, studies=6, chunk_images=4)
    made = generate(asked, **places, out=str(tmp_path / "made"))
    vocabulary = phantom_dataset.manifest.vocabulary
    paths = phantom_dataset.shard_paths("test")
    first = pq.read_table(paths[0], columns=["sex", "scanner"]).slice(0, 6).to_pylist()
    shown = first.count({"sex": "male", "scanner": vocabulary["scanner"][2]})
    assert 0 < shown < 6
    assert (made["images"], made["skipped"]) == (6 - shown, {"unchanged": shown})
    assert generate(asked, **places, out=str(tmp_path / "made"))["images"] == 6 - shown
    for do, message in (
        ({"sex": "other"}, r"do sex=other: no such level\. There are: female \(0\), male \(1\)"),
        ({"group": 1}, r"do group: no such attribute\. Attributes that can be set: scanner, sex"),
        ({"finding.edema": 1}, r"no such finding\. There are: none that can be set"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(GenerateConfig(do=do, studies=2), **places, out=str(tmp_path / "refused"))


def test_data_with_other_levels_are_refused(
    phantom_dataset: Dataset, generator: Bundle, tmp_path: Path
) -> None:
    import json
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(phantom_dataset.location.path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["vocabulary"]["sex"] = ["male", "female"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        GenerationError, match=r"knows the levels female, male of sex; the data have male, female"
    ):
        generate(
            GenerateConfig(do={"sex": "male"}, studies=2),
            model=open_bundle(generator.location).location.uri,
            data=str(copy),
            out=str(tmp_path / "out"),
        )
