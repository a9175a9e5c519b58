"""Features of images by a named judge: what distances between sets of images are computed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterray.bundle import Bundle
from counterray.evaluation.metric import Judge, UnscorableError
from counterray.models.predictors.classifier import Classifier
from counterray.models.predictors.identity import IdentityEncoder
from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.models.predictors.judges import load_judge


@dataclass(frozen=True, kw_only=True)
class LayerJudge:
    """A frozen network that shows its inner layers.

    Attributes:
        name: Its name, such as ``classifier-b``.
        checksum: Checksum of its bundle.
        layers: Images ``[B, 1, H, W]`` in [-1, 1] to feature maps ``[B, C, h, w]``, fine to coarse.
    """

    name: str
    checksum: str
    layers: Callable[[Tensor], Sequence[Tensor]] = field(repr=False)

    @property
    def label(self) -> str:
        """Name and short checksum, as every number of this judge carries it."""
        return f"{self.name}:{self.checksum[:8]}"


def feature_judge(bundle: Bundle, *, name: str = "") -> Judge:
    """The judge of a bundle, with features ``[B, D]`` for its answers.

    They are the pooled features below the head of a classifier, the identity features of an identity
    encoder, and the shared space's image features, which follow pathology, of an image–text encoder (the
    last two of unit length).

    Args:
        bundle: Of one of these.
        name: What reports call it; the stage's name and "features" where empty, so that nobody takes a
            distance between features for a score of findings.

    Raises:
        UnscorableError: If the bundle is none of these.
    """
    network, label = load_judge(bundle), name or f"{bundle.stage}-features"
    predict: Callable[[Tensor], Tensor]
    if isinstance(network, Classifier):
        predict = network.embedding
    elif isinstance(network, IdentityEncoder | ImageTextEncoder):
        predict = network.features
    else:
        raise _without_features(bundle)
    return Judge(name=label, checksum=bundle.checksum, predict=predict)


def layer_judge(bundle: Bundle, *, name: str = "") -> LayerJudge:
    """The judge of a bundle, with the feature maps of its backbone's stages for its answers.

    Args:
        bundle: Of a classifier, identity encoder or image–text encoder.
        name: What reports call it; the stage's name and "layers" where empty.

    Raises:
        UnscorableError: If the bundle is none of these.
    """
    network = load_judge(bundle)
    if not isinstance(network, Classifier | IdentityEncoder | ImageTextEncoder):
        raise _without_features(bundle)
    return LayerJudge(
        name=name or f"{bundle.stage}-layers", checksum=bundle.checksum, layers=network.backbone.maps
    )


def extract_features(judge: Judge, image: Tensor, *, batch_size: int = 64) -> Tensor:
    """The judge's features of all images, ``[n, D]`` in float64, ``batch_size`` images at a time.

    Args:
        judge: Features ``[B, D]``, see `feature_judge`.
        image: ``[n, 1, H, W]`` in [-1, 1].
        batch_size: Images at a time.

    Raises:
        ValueError: If there is no image, or an answer is no vector or not finite.
    """
    if not len(image):
        raise ValueError(f"Judge {judge.label} was given no image; features need at least 1.")
    return checked(judge.scores(image, batch_size=batch_size), judge.label)


def checked(features: Tensor, what: str) -> Tensor:
    """Features ``[n, D]`` in float64, refused where statistics of them would mean nothing.

    Args:
        features: As they were computed.
        what: Whose they are, for the message.

    Raises:
        ValueError: If they are no matrix with a row.
        UnscorableError: If they are not finite, as those of a network that diverged.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(
            f"{what}: features of shape {list(features.shape)}; a row of D numbers for each of n ≥ 1 images "
            "[n, D] is needed."
        )
    values = features.detach().double().cpu()
    finite = torch.isfinite(values).all(dim=1)
    if not finite.all():
        raise UnscorableError(
            f"{what}: the features of {int((~finite).sum())} of {len(values)} images are not finite."
        )
    return values


def _without_features(bundle: Bundle) -> UnscorableError:
    return UnscorableError(
        f"A bundle of stage {bundle.stage!r} gives no features to compare images by. Stages that do are: "
        "classifier, identity_encoder, image_text_encoder."
    )
