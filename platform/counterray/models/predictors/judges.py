"""Judges out of bundles: frozen networks for losses and for metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from counterray.bundle import Bundle
from counterray.models.predictors import (
    classifier,
    demographic,
    identity,
    image_text,
    regressor,
    segmentor,
)

_REBUILD: Mapping[str, Callable[[Bundle], nn.Module]] = {
    "classifier": lambda bundle: classifier.rebuild(bundle.metadata),
    "segmentor": lambda bundle: segmentor.rebuild(bundle.metadata),
    "regressor": lambda bundle: regressor.rebuild(bundle.metadata),
    "demographic": lambda bundle: demographic.rebuild(bundle.metadata),
    "identity_encoder": lambda bundle: identity.rebuild(bundle.metadata),
    "image_text_encoder": lambda bundle: image_text.rebuild(
        bundle.metadata, bundle.file(image_text.TOKENIZER_FILE)
    ),
}


def load_judge(bundle: Bundle) -> nn.Module:
    """The trained predictor of a bundle, in evaluation mode, its weights without gradients.

    Gradients still flow through it to its input, as losses on its features need.

    Raises:
        ValueError: If the bundle's stage is none of the predictors.
        RuntimeError: If the weights do not fit the network that the metadata describe.
    """
    if bundle.stage not in _REBUILD:
        raise ValueError(
            f"The bundle at {bundle.location.uri} was made by the stage {bundle.stage!r}, which is no judge. "
            f"Judges are: {', '.join(_REBUILD)}."
        )
    module = _REBUILD[bundle.stage](bundle)
    module.load_state_dict(bundle.tensors())
    return module.eval().requires_grad_(False)
