"""`mine_vae`, the first stage of `mine_ldm`: the autoencoder; told the attributes, a baseline of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.losses import VAELossWeights, vae_losses
from counterray.models.mine_ldm.vae import AttributeVAE, VAENetworkConfig
from counterray.models.predictors.classifier import Classifier
from counterray.models.predictors.common import evaluating, repeatable, require_built
from counterray.models.predictors.judges import load_judge
from counterray.nn.ssim import structural_similarity
from counterray.training.stage import Export, Losses, StageConfig


class MineVAEConfig(StageConfig):
    """Settings of the `mine_vae` stage; the defaults are the published ones."""

    stage: Literal["mine_vae"] = "mine_vae"
    """Name of the stage."""
    network: VAENetworkConfig = VAENetworkConfig()
    """Sizes of the network."""
    weights: VAELossWeights = VAELossWeights()
    """Weights of the losses."""
    attributes: tuple[str, ...] = Field(default=())
    """Categorical attributes that encoder and decoder are told. With some, and ``weights.kl`` of about 1 or
    more, this is a conditional β-VAE, which edits images by itself; without, the autoencoder below the
    diffusion."""


@dataclass(frozen=True)
class _Built:
    data: DatasetInfo
    space: AttributeSpace | None
    judge: Classifier | None


class MineVAEStage:
    """`Stage` for `AttributeVAE`.

    Args:
        config: Settings.
    """

    name = "mine_vae"
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = ()
    needs_reports = False
    monitor = "loss_total"
    direction = "min"

    def __init__(self, config: MineVAEConfig) -> None:
        self.config = config
        self.frozen: dict[str, nn.Module] = {}
        self._built: _Built | None = None

    @property
    def inputs(self) -> Mapping[str, str]:
        """The judge whose feature maps are compared; none where the weight is 0."""
        return {"judge": "classifier"} if self.config.weights.perceptual else {}

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> AttributeVAE:
        """The network for ``data``; the judge goes to ``frozen``.

        Raises:
            KeyError: If the judge is missing.
            ValueError: If the dataset lacks an attribute.
        """
        judge: Classifier | None = None
        if self.inputs:
            if "judge" not in inputs:
                raise KeyError(
                    "mine_vae needs the bundle of a 'classifier' as input 'judge'; train that stage first, "
                    "or set weights.perceptual=0 to go without its loss."
                )
            opened = load_judge(inputs["judge"].expect("classifier"))
            assert isinstance(opened, Classifier)
            self.frozen, judge = {"judge": opened}, opened
        space = AttributeSpace.of(self.config.attributes, data) if self.config.attributes else None
        self._built = _Built(data, space, judge)
        return AttributeVAE(self.config.network, image_size=data.image_size, space=space)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """See `vae_losses`."""
        built = require_built(self._built)
        image = batch.image.float()
        posterior, decoded = module(image, self._codes(batch))
        layers = built.judge.features if built.judge else None
        total, parts = vae_losses(image, posterior, decoded, self.config.weights, layers)
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def _codes(self, batch: Batch) -> Tensor | None:
        space = require_built(self._built).space
        return space.codes(batch.attributes, like=batch.image) if space else None

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Losses with the same draws every time.

        Returns:
            ``loss_total`` and its parts ``loss_*`` (lower is better); ``ssim`` of the reconstructions from
            posterior means (higher).
        """
        network, sums, count = _network(module), defaultdict[str, float](float), 0
        with evaluating(module), repeatable():
            for batch in batches:
                losses = self.loss(module, batch, 0)
                codes = self._codes(batch)
                image = network.decode(network.encode(batch.image, codes).mean, codes)
                values = {f"loss_{name}": value for name, value in losses.parts.items()} | {
                    "loss_total": losses.total,
                    "ssim": structural_similarity(image, batch.image.float()).mean(),
                }
                for name, value in values.items():
                    sums[name] += float(value) * len(batch)
                count += len(batch)
        if not count:
            raise ValueError("The validation split is empty; ingest with a validation share above 0.")
        return {name: value / count for name, value in sums.items()}

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``input`` and ``reconstruction``."""
        network, part = _network(module), batch.select(torch.arange(min(16, len(batch))))
        codes = self._codes(part)
        with evaluating(module):
            image = network.decode(network.encode(part.image, codes).mean, codes)
        return {"input": part.image, "reconstruction": image}

    def export(self, module: nn.Module) -> Export:
        """The network's weights, and what `load_vae` rebuilds it from."""
        built = require_built(self._built)
        return Export(
            tensors={"model": {n: v.detach().cpu().contiguous() for n, v in module.state_dict().items()}},
            metadata={
                "config": self.config.model_dump(mode="json"),
                "image_size": built.data.image_size,
                **(built.space.described() if built.space else {}),
            },
            intended_use=(
                "Research on and audits of diagnostic models: latents of images, and, where it is told "
                "attributes, images of a given patient with another attribute. Made images are no evidence "
                "of disease."
            ),
            limits=(
                "An edited image differs from the patient's own also by what the latent leaves out: compare "
                "it with its null intervention."
            ),
        )


def _network(module: nn.Module) -> AttributeVAE:
    assert isinstance(module, AttributeVAE)
    return module


def load_vae(bundle: Bundle) -> AttributeVAE:
    """The trained network of a `mine_vae` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    bundle.expect(MineVAEStage.name)
    network = rebuild_vae(bundle.metadata)
    network.load_state_dict(bundle.tensors())
    return network.eval().requires_grad_(False)


def rebuild_vae(metadata: Mapping[str, Any]) -> AttributeVAE:
    """The network that a bundle's metadata describe, without its weights."""
    config = MineVAEConfig.model_validate(metadata["config"])
    space = AttributeSpace.read(metadata) if config.attributes else None
    return AttributeVAE(config.network, image_size=metadata["image_size"], space=space)
