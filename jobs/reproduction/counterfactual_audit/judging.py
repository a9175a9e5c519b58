"""Readings of the gates on phantom individuals, by judges that learned from other patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from counterray.audits.gates import Reading
from counterray.audits.worlds.level_images import LevelImages
from counterray.bundle import Bundle
from counterray.evaluation.intervals import Floats
from counterray.evaluation.judge import demographic_judges, open_judge
from counterray.evaluation.pixel_error import mean_absolute_error
from jobs.auditing.judging import gate_readings
from jobs.auditing.sets import ImageSet, SetChunk, Views


class Judges:
    """The judges, opened.

    Args:
        bundles: ``classifier``, ``demographic`` and ``identity_encoder`` to bundle.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self.labels = {stage: f"{stage}:{bundle.checksum[:8]}" for stage, bundle in bundles.items()}
        self._classifier = open_judge(bundles["classifier"])
        self._identity = open_judge(bundles["identity_encoder"])
        self._attributes = demographic_judges(bundles["demographic"])

    def readings(self, individuals: LevelImages, images: Tensor) -> list[Reading]:
        """What the gates take, as `jobs audit` measures it.

        Args:
            individuals: As observed; their exact counterfactuals are not looked at.
            images: ``[K, N, 1, S, S]``, the own level included.
        """
        name, levels = individuals.attribute, individuals.levels
        null = images[torch.from_numpy(individuals.own), torch.arange(len(individuals.batch))]
        views = [self._said(individuals, image, null) for image in (individuals.batch.image, *images)]
        said = {column: np.stack([view[column] for view in views]) for column in views[0]}
        own = [levels[code] for code in individuals.own]
        patients = list(individuals.batch.patient_ids)
        studies = pa.table({f"attribute.{name}": own, "patient_id": patients})
        chunk = SetChunk(name="all", prefix="phantom", views=Views(name, levels), studies=studies)
        return gate_readings(said, ImageSet((chunk,), studies), self.labels, kept=range(len(own)))

    def _said(self, individuals: LevelImages, image: Tensor, null: Tensor) -> dict[str, Floats]:
        """Of each image of a view what `gate_readings` goes by."""
        observed = individuals.batch.image
        others = [
            0.5 * (judge.scores(image) - judge.scores(null)).abs().sum(dim=1)
            for attribute, judge in self._attributes.items()
            if attribute != individuals.attribute
        ]
        moved = self._classifier.scores(image) - self._classifier.scores(null)
        said = {
            "composition": mean_absolute_error(image, observed),
            "identity": cosine_similarity(self._identity.scores(image), self._identity.scores(observed)),
            "findings": moved.abs().mean(dim=1),
            "read": self._attributes[individuals.attribute].scores(image),
        }
        if others:
            said["others"] = torch.stack(others).amax(dim=0)
        return {column: values.double().numpy() for column, values in said.items()}
