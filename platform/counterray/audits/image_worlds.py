"""Image worlds: classifiers on the phantom whose dependence on group or scanner is planted, and known.

There are three kinds, each with a dial from none to strong. ``rerendered``: a network that sees the study as
it would be at a fixed level of the attribute, whatever it was, plus the dial times what is read of the
attribute from the image (an explicit shortcut); at 0 it is invariant by construction. ``excluded``: the same
shortcut beside a head on features from which the attribute is projected out; it needs the image alone.
``confounded``: a network whose training images show the planted level with the finding. The truth of each is
taken from the renderer's exact counterfactuals, not assumed.

Letters: T = classifiers, N = individuals, K = levels, R = null interventions, S = edge of the images [px].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from counterray.audits.errors import AuditError
from counterray.audits.scores import CounterfactualScores
from counterray.audits.settings import MarginConfig
from counterray.audits.verdicts import Verdict
from counterray.audits.worlds.image_networks import ExcludedHead, Reader, ThumbnailClassifier, fit_network
from counterray.audits.worlds.level_images import LevelImages, planted_batch, render_levels
from counterray.audits.worlds.planted import ImagePoolConfig, Kind, PlantedClassifier, Sight
from counterray.data.phantom.studies import make_batch
from counterray.data.study import Batch
from counterray.evaluation.intervals import Floats

_TRUTH_SEED = 2**20
"""Added to the seed of those who learn, so that truths are of other patients."""

_LEAST_THRESHOLD = 1e-6
"""Distance of a threshold from 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class PairTruth:
    """What changing a level truly does to one classifier, over simulated individuals.

    Attributes:
        first: The level a.
        second: The level a'.
        mean: Mean effect ``s(x^(a')) - s(x^(a))``.
        absolute: Mean of its absolute value.
        flip_rate: Share of decisions that change.
        individuals: How many were simulated.
    """

    first: str
    second: str
    mean: float
    absolute: float
    flip_rate: float
    individuals: int

    def verdict(self, margins: MarginConfig) -> Verdict:
        """What a perfect audit would say: ``invariant`` within all margins, ``depends`` beyond one."""
        size = margins.size(mean=self.mean, absolute=self.absolute, flip_rate=self.flip_rate)
        return "invariant" if size < 1 else "depends"


@dataclass(frozen=True, kw_only=True)
class ImagePool:
    """Classifiers and the truth of each.

    Attributes:
        config: How they were made.
        classifiers: T of them.
        truths: Of each classifier one for each pair of levels, of the direct effect.
    """

    config: ImagePoolConfig
    classifiers: Sequence[PlantedClassifier]
    truths: Sequence[Sequence[PairTruth]]


def image_pool(config: ImagePoolConfig) -> ImagePool:
    """The pool with its truths; equal settings give equal pools.

    Raises:
        AuditError: If a level, finding or strength does not exist.
    """
    classifiers = fit_image_pool(config)
    drawn = make_batch(config.truth_studies, config.image_size, config.seed + _TRUTH_SEED)
    individuals = render_levels(drawn, attribute=config.attribute, levels=config.levels or None)
    return ImagePool(config=config, classifiers=classifiers, truths=true_effects(classifiers, individuals))


def fit_image_pool(config: ImagePoolConfig) -> list[PlantedClassifier]:
    """A classifier of each kind, finding and strength.

    Raises:
        AuditError: See `image_pool`.
    """
    config.checked()
    learned = make_batch(config.studies, config.image_size, config.seed)
    individuals = render_levels(learned, attribute=config.attribute)
    for finding in config.findings:
        if len(np.unique(_labels(individuals, finding))) < 2:
            raise AuditError(
                f"All or none of the {config.studies} studies to learn from show {finding}; raise studies."
            )
    reader = Reader.fit(_mixed(config, individuals), config.attribute, config.network, seed=config.seed)
    made = [classifier for kind in config.kinds for classifier in _of_kind(kind, config, individuals, reader)]
    sight = Sight(
        learned.image, individuals.records[0], config, rerendered=_at_reference(individuals, config)
    )
    return [
        replace(each, threshold=youden_threshold(each.seen(sight), _labels(individuals, each.finding)))
        for each in made
    ]


def image_pool_scores(
    classifiers: Sequence[PlantedClassifier],
    individuals: LevelImages,
    *,
    intervened: Tensor | None = None,
    placebo: Tensor | None = None,
) -> CounterfactualScores:
    """What classifiers of one pool say of individuals, for `counterfactual_effect`.

    Args:
        classifiers: T of them.
        individuals: With the records as they would have been.
        intervened: ``[K, N, 1, S, S]`` images of another generator; the exact ones where ``None``.
        placebo: ``[R, N, 1, S, S]`` its null interventions; the observed images, which are what an exact
            generator repaints, where ``None``.

    Raises:
        AuditError: If there is no classifier, they are of several pools, or only one of the two tensors is
            given.
    """
    config = _one_config(classifiers)
    if (intervened is None) != (placebo is None):
        raise AuditError(
            "A generator's counterfactuals and its null interventions belong together; give both."
        )
    batch = individuals.batch
    own = torch.from_numpy(individuals.own)
    record = {
        name: torch.stack([each[name] for each in individuals.records])[own, torch.arange(len(batch))]
        for name in individuals.records[0]
    }
    images = individuals.images if intervened is None else intervened
    null = batch.image[None] if placebo is None else placebo
    fixed = _at_reference(individuals, config)
    changed = [
        Sight(image, each, config, rerendered=fixed)
        for image, each in zip(images, individuals.records, strict=True)
    ]
    unchanged = [Sight(image, record, config, rerendered=fixed) for image in null]
    observed = Sight(batch.image, record, config, rerendered=fixed)
    return CounterfactualScores(
        attribute=individuals.attribute,
        levels=individuals.levels,
        targets=[each.target for each in classifiers],
        observed=_seen(classifiers, [observed])[..., 0],
        intervened=_seen(classifiers, changed),
        placebo=_seen(classifiers, unchanged),
        own=individuals.own,
        labels=np.stack([_labels(individuals, each.finding) for each in classifiers]),
        patients=list(batch.patient_ids),
        effect=individuals.effect,
    )


def true_effects(classifiers: Sequence[PlantedClassifier], individuals: LevelImages) -> list[list[PairTruth]]:
    """The truth of each classifier for each pair of levels, by the renderer's images."""
    scores = image_pool_scores(classifiers, individuals)
    truths = []
    for target, values in zip(scores.targets, scores.intervened, strict=True):
        called = values >= target.threshold
        truths.append(
            [
                PairTruth(
                    first=scores.levels[a],
                    second=scores.levels[b],
                    mean=float((values[:, b] - values[:, a]).mean()),
                    absolute=float(np.abs(values[:, b] - values[:, a]).mean()),
                    flip_rate=float((called[:, a] != called[:, b]).mean()),
                    individuals=len(scores),
                )
                for a, b in combinations(range(len(scores.levels)), 2)
            ]
        )
    return truths


def youden_threshold(scores: Floats, labels: Floats) -> float:
    """Threshold of largest sensitivity + specificity - 1, half-way to the next lower score.

    Raises:
        AuditError: If the labels have one value only.

    Reference: Youden, 1950, Cancer 3(1), 32-35.
    """
    ill = labels == 1
    if ill.all() or not ill.any():
        raise AuditError(
            "Youden's threshold needs individuals with and without the finding; draw more studies."
        )
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(ill[order])
    gain = hits / ill.sum() - np.cumsum(~ill[order]) / (~ill).sum()
    last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are called together
    best = int(np.argmax(np.where(last, gain, -np.inf)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((ranked[best] + below) / 2, _LEAST_THRESHOLD, 1 - _LEAST_THRESHOLD))


def _of_kind(
    kind: Kind, config: ImagePoolConfig, individuals: LevelImages, reader: Reader
) -> list[PlantedClassifier]:
    pairs = [(finding, strength) for finding in config.findings for strength in config.strengths]
    if kind == "confounded":
        return [
            PlantedClassifier(
                kind="confounded",
                finding=finding,
                strength=strength,
                config=config,
                network=_confounded(config, individuals, finding, strength),
            )
            for finding, strength in pairs
        ]
    network, head = _base(kind, config, individuals)
    return [
        PlantedClassifier(
            kind=kind,
            finding=finding,
            strength=strength,
            config=config,
            network=network,
            head=head,
            reader=reader,
        )
        for finding, strength in pairs
    ]


def _confounded(
    config: ImagePoolConfig, individuals: LevelImages, finding: str, strength: float
) -> ThumbnailClassifier:
    level = config.position(config.level)
    batch = planted_batch(individuals, finding=finding, level=level, strength=strength, seed=config.seed)
    return fit_network(batch, [finding], config.network, seed=config.seed)


def _base(
    kind: Kind, config: ImagePoolConfig, individuals: LevelImages
) -> tuple[ThumbnailClassifier, ExcludedHead | None]:
    batch, level = individuals.batch, config.position(config.reference)
    if kind == "rerendered":
        seen = replace(batch, image=individuals.images[level])
        return fit_network(seen, config.findings, config.network, seed=config.seed), None
    network = fit_network(_mixed(config, individuals), config.findings, config.network, seed=config.seed)
    return network, ExcludedHead.fit(network, individuals, config.findings, share=config.share)


def _mixed(config: ImagePoolConfig, individuals: LevelImages) -> Batch:
    """The individuals at levels that follow nothing."""
    level = config.position(config.level)
    return planted_batch(individuals, finding=config.findings[0], level=level, strength=0.0, seed=config.seed)


def _seen(classifiers: Sequence[PlantedClassifier], sights: Sequence[Sight]) -> Floats:
    """Scores ``[T, N, len(sights)]``."""
    return np.stack([np.stack([each.seen(sight) for sight in sights], axis=-1) for each in classifiers])


def _at_reference(individuals: LevelImages, config: ImagePoolConfig) -> Tensor | None:
    """What rendering anew would give, where it was rendered already."""
    if (individuals.effect, individuals.attribute) != ("direct", config.attribute):
        return None
    return individuals.images[individuals.levels.index(config.reference)]


def _labels(individuals: LevelImages, finding: str) -> Floats:
    batch = individuals.batch
    return np.asarray(batch.findings[:, batch.finding_names.index(finding)].double().numpy())


def _one_config(classifiers: Sequence[PlantedClassifier]) -> ImagePoolConfig:
    if not classifiers or any(each.config != classifiers[0].config for each in classifiers):
        raise AuditError("Classifiers of one pool are needed, one or more: they share what they look at.")
    return classifiers[0].config
