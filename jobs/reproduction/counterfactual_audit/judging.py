"""Readings of the gates on phantom individuals, by judges that learned from other patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from counterray.audits.gates import Reading
from counterray.audits.worlds.level_images import LevelImages
from counterray.bundle import Bundle
from counterray.evaluation.judge import demographic_judges, open_judge
from jobs.auditing.gating import gate_readings
from jobs.auditing.judging import judged
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.auditing.views import Views


class Judges:
    """The judges, opened.

    Args:
        bundles: ``classifier``, ``demographic`` and ``identity_encoder`` to bundle.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self.labels = {stage: f"{stage}:{bundle.checksum[:8]}" for stage, bundle in bundles.items()}
        self._judges = {name: open_judge(bundles[name]) for name in ("classifier", "identity_encoder")}
        self._attributes = demographic_judges(bundles["demographic"])

    def readings(self, individuals: LevelImages, images: Tensor) -> list[Reading]:
        """What the gates take, as `jobs audit` measures it.

        Args:
            individuals: As observed; their exact counterfactuals are not looked at.
            images: ``[K, N, 1, S, S]``, the own level included.
        """
        name, levels = individuals.attribute, individuals.levels
        about = Views(name, levels)
        null = images[torch.from_numpy(individuals.own), torch.arange(len(individuals.batch))]
        observed = individuals.batch.image
        views = [
            judged(self._judges, self._attributes, image, views=about, observed=observed, null=null)
            for image in (observed, *images)
        ]
        said = {column: np.stack([view[column].numpy() for view in views]) for column in views[0]}
        own = [levels[code] for code in individuals.own]
        patients = list(individuals.batch.patient_ids)
        studies = pa.table({f"attribute.{name}": own, "patient_id": patients})
        chunk = SetChunk(name="all", prefix="phantom", views=about, studies=studies)
        findings = self._judges["classifier"].outputs
        images_of = ImageSet((chunk,), studies)
        return gate_readings(said, images_of, self.labels, findings=findings, kept=range(len(own)))
