"""Untrained bundles in a moment, for jobs whose way matters and whose pictures do not."""

from __future__ import annotations

from pathlib import Path

import torch

from counterray.bundle import Bundle, write_bundle
from counterray.data.dataset import Dataset, DatasetInfo
from counterray.storage import resolve
from counterray.training.stage import Stage


def bundle_of(stage: Stage, folder: Path, dataset: Dataset, info: DatasetInfo | None = None) -> Bundle:
    """The untrained stage, built for the dataset (or what ``info`` says of it), as a bundle."""
    torch.manual_seed(0)
    return write_bundle(
        resolve(folder),
        method="test",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(stage.build({}, info or dataset.info())),
        data_fingerprint=dataset.manifest.fingerprint,
    )
