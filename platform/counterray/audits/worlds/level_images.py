"""Phantom individuals at every level of an attribute, drawn by the renderer: exact counterfactuals.

Letters: N = individuals, K = levels, S = edge of the images [px].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from counterray.audits.errors import AuditError, Codes
from counterray.causal.mechanism import Values
from counterray.data.phantom.render import Renderer, exact_scm
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import parents_of
from counterray.data.study import Batch

Attribute = Literal["group", "scanner"]
"""What may be planted: each has a trace in the image of its own, a tint or an acquisition."""


@dataclass(frozen=True, kw_only=True)
class LevelImages:
    """Individuals and what they would look like at each level of an attribute.

    Attributes:
        attribute: Its name.
        effect: ``direct`` if nothing but the attribute's own trace changes, ``total`` if its descendants
            (of ``group`` site, scanner and disease) follow.
        levels: Names of the K levels.
        batch: The individuals as observed, each at one of the levels.
        images: ``[K, N, 1, S, S]`` in [-1, 1]; at the own level the observed image.
        records: K records, each every variable of the causal model to ``[N]``, as they would have been.
    """

    attribute: Attribute
    effect: Literal["total", "direct"]
    levels: tuple[str, ...]
    batch: Batch
    images: Tensor
    records: tuple[Values, ...]

    @property
    def own(self) -> Codes:
        """``[N]`` position of each individual's observed level."""
        codes = self.batch.attributes[self.attribute].long().tolist()
        return np.array([self.levels.index(VOCABULARY[self.attribute][code]) for code in codes])


def render_levels(
    batch: Batch,
    *,
    attribute: Attribute,
    levels: Sequence[str] | None = None,
    effect: Literal["total", "direct"] = "direct",
) -> LevelImages:
    """Draws phantom individuals at every level.

    Args:
        batch: Phantom studies, attributes coded by `VOCABULARY`.
        attribute: What is set.
        levels: At which; individuals at others are left out. All of the attribute's by default.
        effect: See `LevelImages`.

    Raises:
        ValueError: If the batch is not of phantom studies.
    """
    chosen = [VOCABULARY[attribute].index(name) for name in levels or VOCABULARY[attribute]]
    batch = batch.select(torch.isin(batch.attributes[attribute].long(), torch.tensor(chosen)).nonzero()[:, 0])
    values = parents_of(batch)
    observed = values[attribute].long()
    images, records = [], []
    for level in chosen:
        image, record = batch.image.clone(), {name: value.clone() for name, value in values.items()}
        # At the own level the counterfactual is what was observed.
        rows = (observed != level).nonzero()[:, 0]
        if len(rows):
            part = {name: value[rows] for name, value in values.items()}
            changed = _set(part, batch.image[rows], attribute, level, effect)
            image[rows] = changed.pop("image")
            for name, value in changed.items():
                record[name][rows] = value
        images.append(image)
        records.append(record)
    return LevelImages(
        attribute=attribute,
        effect=effect,
        levels=tuple(VOCABULARY[attribute][code] for code in chosen),
        batch=batch,
        images=torch.stack(images),
        records=tuple(records),
    )


def rerender(record: Values, *, attribute: Attribute, level: int, image_size: int) -> Tensor:
    """The images ``[N, 1, S, S]`` of records with one attribute set and nothing else changed.

    What a classifier sees of it cannot depend on the attribute, whatever the attribute was.
    """
    setting = {**record, attribute: torch.full_like(record[attribute], float(level))}
    return Renderer(image_size).predict(_seeds(record), setting)


def planted_batch(individuals: LevelImages, *, finding: str, level: int, strength: float, seed: int) -> Batch:
    """The individuals with levels that follow a finding: confounding, as by selection, of dialled strength.

    With probability ``strength`` an individual with the finding is drawn at the planted level and one without
    at one of the others; elsewhere the level is drawn from all alike, whatever the finding. Equal seeds
    use equal draws at every strength, so that more strength moves more of the same individuals.

    Args:
        individuals: With direct effects, so that labels stay true.
        finding: That the attribute comes to tell of.
        level: Position of the planted level.
        strength: 0 (none) to 1 (the level tells the finding).
        seed: Of the draws.

    Raises:
        AuditError: If the strength is not within 0 to 1, or effects are total.
    """
    if not 0 <= strength <= 1:
        raise AuditError(f"strength = {strength:g} of a confounder must lie within 0 to 1.")
    if individuals.effect != "direct":
        raise AuditError(
            "Confounding is planted with effect = 'direct': total effects change the labels too."
        )
    batch, count = individuals.batch, len(individuals.levels)
    random = np.random.default_rng(seed)
    ill = batch.findings[:, batch.finding_names.index(finding)].numpy() > 0.5
    free = random.integers(0, count, len(batch))
    others = (level + random.integers(1, count, len(batch))) % count
    bound = random.random(len(batch)) < strength
    drawn = torch.from_numpy(np.where(bound, np.where(ill, level, others), free))
    return replace(
        batch,
        image=individuals.images[drawn, torch.arange(len(batch))],
        attributes={**batch.attributes, individuals.attribute: drawn.float()},
    )


def _set(values: Values, image: Tensor, attribute: Attribute, level: int, effect: str) -> dict[str, Tensor]:
    """Values and image under ``do(attribute = level)``."""
    size = image.shape[-1]
    if effect == "direct":
        setting = torch.full_like(values[attribute], float(level))
        return {
            **values,
            attribute: setting,
            "image": rerender(values, attribute=attribute, level=level, image_size=size),
        }
    scm = exact_scm(size)
    observed = {"image": image, **values}
    between = scm.graph.affected([attribute]) - {attribute, "image"}
    noise = {**scm.abduct(observed, between), "image": _seeds(values)}
    return scm.predict(observed, noise, {attribute: float(level)})


def _seeds(record: Values) -> Tensor:
    return torch.stack([record["patient_seed"].double(), record["noise_seed"].double()], dim=1)
