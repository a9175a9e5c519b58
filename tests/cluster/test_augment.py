"""``augment`` on a real Ray: a dataset whose rare finding is filled up, also in two goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from counterray.bundle import BundleError
from counterray.config import ConfigError, validate
from counterray.data.batching import read_batches
from counterray.data.dataset import Dataset, open_dataset
from counterray.models.generator import EditError
from counterray.models.gsvae.stages import GSVAEConfig, GSVAEStage
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.regressor import RegressorConfig, RegressorStage
from counterray.storage import resolve
from jobs.augmentation.job import augment
from jobs.augmentation.request import AugmentConfig
from jobs.generation.request import GenerationError
from tests.cluster.bundles import bundle_of
from tests.small_gsvae import NETWORK

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

FINDING = "pneumothorax"
NEEDED = 10


@pytest.fixture(scope="module")
def places(phantom_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("augment")
    settings = {"network": NETWORK, "weights": {"identity": 0, "pathology": 0}}
    gsvae = bundle_of(GSVAEStage(GSVAEConfig.model_validate(settings)), folder / "gsvae", phantom_dataset)
    judge = bundle_of(ClassifierStage(ClassifierConfig()), folder / "judge", phantom_dataset)
    return {
        "model": gsvae.location.uri,
        "judge": judge.location.uri,
        "data": phantom_dataset.location.uri,
    }


def config(dataset: Dataset, **settings: Any) -> AugmentConfig:
    """A target that takes `NEEDED` studies; the judge is untrained, so its threshold lets most pass."""
    counts = dataset.manifest.counts["train"]["findings"][FINDING]
    known = counts["present"] + counts["absent"]
    values = {
        "targets": {f"finding.{FINDING}": (counts["present"] + NEEDED) / (known + NEEDED)},
        "threshold": 1e-6,
        "near_copy_percentile": 5,
        "chunk_images": 8,
        "resources": {"workers": 1},
    }
    return validate(AugmentConfig, {**values, **settings})


def test_a_rare_finding_is_filled_up_in_a_dataset_like_any_other(
    phantom_dataset: Dataset, places: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    missed = rf"finding\.{FINDING} has \d of {NEEDED} studies after 16 attempts .* Raise attempts_per_study"
    with pytest.raises(GenerationError, match=missed):
        augment(config(phantom_dataset, attempts_per_study=1, bank_studies=90), **places, out=str(out))
    kept = open_dataset(str(out)).manifest
    assert 0 < kept.notes["synthetic"] < NEEDED
    result = augment(config(phantom_dataset, attempts_per_study=40, bank_studies=90), **places, out=str(out))
    assert result["synthetic"] == {f"finding.{FINDING}": NEEDED}

    made = open_dataset(result["dataset"])
    real = phantom_dataset.manifest
    asked = config(phantom_dataset).targets[f"finding.{FINDING}"]
    assert made.manifest.prevalence([FINDING])[0] == pytest.approx(asked)
    assert made.rows("train") == phantom_dataset.rows("train") + NEEDED
    assert made.rows("test") == phantom_dataset.rows("test")
    assert made.manifest.vocabulary == real.vocabulary
    assert made.manifest.counts["test"] == real.counts["test"]

    studies = [row for path in made.shard_paths("train") for row in pq.read_table(path).to_pylist()]
    by_id = {row["image_id"]: row for row in studies}
    synthetic = [row for row in studies if row["source"] == "synthetic:gsvae"]
    provenance = pq.read_table(out / "provenance.parquet").to_pylist()
    assert {row["image_id"] for row in synthetic} == {row["image_id"] for row in provenance}
    for row in provenance:
        ours, source = by_id[row["image_id"]], by_id[row["source_image_id"]]
        assert (ours["findings"][FINDING], source["findings"][FINDING]) == (1, 0)
        assert ours["findings"]["no_finding"] == 0
        others = set(ours["findings"]) - {FINDING, "no_finding"}
        assert all(ours["findings"][name] == source["findings"][name] for name in others)
        for name in ("patient_id", "sex", "age", "site", "scanner", "view"):
            assert ours[name] == source[name]
        assert (ours["report"], ours["measurements"], ours["masks"]) == (None, [], [])
        assert row["distance"] > 0
    rejected = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert sum(made.manifest.quarantined.values()) == len(rejected) > 0
    assert made.manifest.quarantined.keys() <= {"no_match", "duplicate", "near_copy", "not_shown"}
    batches = list(read_batches(made, "train", batch_size=64, masks=("heart",), reports=True))
    assert sum(len(batch) for batch in batches) == made.rows("train")
    assert torch.isfinite(torch.cat([batch.image for batch in batches])).all()


def test_the_training_split_may_be_synthetic_alone(
    phantom_dataset: Dataset, places: dict[str, str], tmp_path: Path
) -> None:
    asked = config(phantom_dataset, train="synthetic", near_copy_percentile=0)
    made = open_dataset(augment(asked, **places, out=str(tmp_path))["dataset"])
    counts = phantom_dataset.manifest.counts["train"]["findings"][FINDING]
    share = asked.targets[f"finding.{FINDING}"]
    assert made.rows("train") == math.ceil(share * (counts["present"] + counts["absent"]))
    assert made.manifest.prevalence([FINDING])[0] == 1
    assert made.manifest.counts["test"] == phantom_dataset.manifest.counts["test"]


def test_what_cannot_be_judged_or_made_is_refused_and_leaves_the_folder_free(
    phantom_dataset: Dataset, places: dict[str, str], tmp_path: Path
) -> None:
    out = {"out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match=r"finding\.edemma: no such finding in .* There are: .*edema"):
        augment(config(phantom_dataset, targets={"finding.edemma": 0.1}), **places, **out)
    regressor = bundle_of(RegressorStage(RegressorConfig()), tmp_path / "regressor", phantom_dataset)
    with pytest.raises(BundleError, match=f"cannot judge the targets: .* no output {FINDING}"):
        augment(config(phantom_dataset), **{**places, "judge": regressor.location.uri}, **out)
    with pytest.raises(GenerationError, match=r"features.*near_copy_percentile=0 goes without"):
        augment(config(phantom_dataset), **places, **out, near_judge=regressor.location.uri)
    with pytest.raises(EditError, match="severity"):
        augment(config(phantom_dataset, severity="mild"), **places, **out)
    assert resolve(tmp_path / "out").files() == []
