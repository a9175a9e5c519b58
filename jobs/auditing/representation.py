"""CIT-LR beside an audit: the representation Z that it needs, kept beside the images, and its test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from counterray.audits.cit_lr import CitLr, CitLrConfig, Rows, cit_lr
from counterray.audits.errors import AuditError
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import AuditConfig
from counterray.evaluation.intervals import Floats
from counterray.models.generator import Generator
from counterray.models.mine_ldm.generator import AttributeGenerator
from counterray.models.mine_ldm.model import MineLDM
from counterray.storage import Location
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.generation.chunks import parquet, read_parquet

REPRESENTATION_SCHEMA = pa.schema(
    [pa.field("number", pa.int64(), nullable=False), pa.field("features", pa.list_(pa.float64()))]
)
"""Z of a study's observed image."""

EDGE = 2
"""Cells along each edge that a latent is averaged over: 8 channels give 32 features, as many as the published
test has in its tabular worlds; its image representation is not described."""

WITHOUT = (
    "it needs a representation of the image from which the attribute was taken out, such as a mine_ldm with "
    "its T_ξ learns; this generator has none"
)


def disentangled(generator: Generator) -> MineLDM | None:
    """The model of a generator that takes the attributes out of a representation, if it is one."""
    model = generator.model if isinstance(generator, AttributeGenerator) else None
    return model if isinstance(model, MineLDM) and model.perturbation is not None else None


@torch.no_grad()
def keep_representation(generator: Generator, chunk: SetChunk, image: Tensor, cache: Location) -> None:
    """Writes Z = T_ξ(u) of a chunk's observed images ``[N, 1, H, W]``, if the generator has it."""
    model = disentangled(generator)
    if model is None:
        return
    features = functional.adaptive_avg_pool2d(model.encode(image).cpu(), EDGE).flatten(1).double()
    rows = [
        {"number": number, "features": values}
        for number, values in zip(chunk.studies["number"].to_pylist(), features.tolist(), strict=True)
    ]
    _place(cache, chunk).write_bytes(parquet(pa.Table.from_pylist(rows, REPRESENTATION_SCHEMA)))


def cit_lr_beside(
    scores: CounterfactualScores,
    generator: Generator,
    images: ImageSet,
    config: AuditConfig,
    *,
    kept: Sequence[int],
    cache: Location,
) -> CitLr | str:
    """The corrected CIT-LR of the decisions on observed images, or why there is none.

    Args:
        scores: Of the targets that the audit did not refuse.
        generator: Of the audit.
        images: Of the attribute.
        config: Of the audit.
        kept: Positions in ``images.studies`` of the individuals of ``scores``.
        cache: Where `keep_representation` wrote.
    """
    if disentangled(generator) is None:
        return WITHOUT
    cut = np.array([target.threshold for target in scores.targets])[:, None]
    rows = Rows(
        predictions=(scores.observed >= cut).astype(np.float64),
        groups=scores.own,
        representation=read_representation(cache, images)[list(kept)],
        patients=scores.patients,
    )
    try:
        return cit_lr(
            rows,
            CitLrConfig(seed=config.seed),
            attribute=scores.attribute,
            levels=scores.levels,
            minimum_patients=config.minimum_patients,
        )
    except AuditError as error:
        return str(error)


def read_representation(cache: Location, images: ImageSet) -> Floats:
    """Z ``[N, D]`` of the studies of a set, as `keep_representation` wrote it."""
    parts = [
        read_parquet(_place(cache, chunk), REPRESENTATION_SCHEMA)["features"].to_pylist()
        for chunk in images.chunks
    ]
    return np.concatenate([np.array(part, dtype=np.float64) for part in parts])


def _place(cache: Location, chunk: SetChunk) -> Location:
    return cache / f"representations/{chunk.name}.parquet"
