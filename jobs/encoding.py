"""From a dataset and two bundles to a dataset with latents: what the jobs ``encode`` and ``demo`` share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from counterray.bundle import BundleError, open_bundle
from counterray.data.dataset import open_dataset
from counterray.data.derive import derive
from counterray.models.gsvae.stages import load as load_gsvae
from counterray.models.pathology_ldm.encoding import EncodeConfig, LatentEncoder, tensor_infos
from counterray.models.pathology_ldm.text import open_text_encoder, weights_checksum
from counterray.models.predictors.image_text import load as load_text
from counterray.storage import StorageError

logger = logging.getLogger(__name__)


def encode(config: EncodeConfig, *, data: str, gsvae: str, text: str, out: str) -> Mapping[str, Any]:
    """Writes a dataset whose studies carry latents and text states; returns the job's result.

    Raises:
        BundleError: If a bundle cannot be trusted or is another stage's.
        StorageError: If something cannot be read or written.
    """
    dataset = open_dataset(data)
    dataset.require_split("train")
    if dataset.manifest.tensors:
        raise StorageError(
            f"The dataset at {dataset.location.uri} carries latents already. Encode its source."
        )
    with _named("gsvae"):
        parents = {"gsvae": open_bundle(gsvae).expect("gsvae")}
    with _named("text"):
        parents["text"] = open_bundle(text).expect("image_text_encoder")
    size = parents["gsvae"].metadata["image_size"]
    if size != dataset.manifest.image_size:
        raise BundleError(
            f"--gsvae: the bundle at {parents['gsvae'].location.uri} encodes images of {size} px; those of "
            f"--data have {dataset.manifest.image_size} px. Ingest the data with image_size={size}."
        )
    info = dataset.info()

    def text_encoder() -> Any:
        with _named("text"):
            tower = load_text(parents["text"])
        return open_text_encoder(config.text, tower)

    def make() -> LatentEncoder:
        device = torch.device("cuda" if config.gpus else "cpu")
        with _named("gsvae"):
            network = load_gsvae(parents["gsvae"]).to(device)
        return LatentEncoder(network, text_encoder().to(device), info, config)

    checksums = {role: bundle.checksum for role, bundle in parents.items()}
    decisive = config.model_dump(mode="json", exclude={"batch_size", "gpus", "workers"})
    encoding = {**decisive, "text_weights": weights_checksum(text_encoder())}
    settings = {"config": encoding, "parents": checksums}
    derived = derive(
        dataset, out, make, kind="encoded", settings=settings, gpus=config.gpus, workers=config.workers
    )
    totals = {
        name: sum(count[name] for counts in derived.counts.values() for count in counts)
        for name in ("prompts", "full")
    }
    if totals["full"]:
        logger.warning(
            "%d of %d prompts fill all %d tokens of text.context; what they say beyond is not read",
            totals["full"],
            totals["prompts"],
            config.text.context,
        )
    if not sum(count["prompts"] for count in derived.counts["train"]):
        raise StorageError(
            f"prompts = {config.prompts}: no training study of {dataset.location.uri} has one. Run python -m "
            "jobs refine first and encode its result, or set prompts=report or prompts=labels."
        )
    manifest = derived.finish(
        tensors=tensor_infos(derived.counts["train"]), parents=checksums, encoding=encoding
    )
    return {
        "dataset": derived.out.uri,
        "studies": sum(dataset.rows(split) for split in derived.counts),
        **totals,
        "fingerprint": manifest.fingerprint,
    }


@contextmanager
def _named(option: str) -> Iterator[None]:
    """A bundle's error, also a worker's, says which option gave the bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"--{option}: {error}") from error
