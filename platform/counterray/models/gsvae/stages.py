"""`gsvae` as a stage: causal disentanglement of identity and pathology by group supervision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.gsvae.losses import (
    KLReduction,
    LossWeights,
    feature_distance,
    kl_loss,
    random_partners,
    reconstruction_loss,
)
from counterray.models.gsvae.network import GSVAENetwork, NetworkConfig
from counterray.models.predictors.classifier import masked_binary_cross_entropy
from counterray.models.predictors.common import evaluating, finding_metrics, labels_of, require_built
from counterray.models.predictors.identity import IdentityEncoder
from counterray.models.predictors.identity import load as load_identity
from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.models.predictors.image_text import load as load_image_text
from counterray.nn.gaussian import kl_divergence
from counterray.nn.ssim import structural_similarity
from counterray.training.stage import Export, Losses, StageConfig

PathologyPairing = Literal["donor", "as_printed"]


class GSVAEConfig(StageConfig):
    """Settings of the `gsvae` stage; the defaults are the paper's.

    The arms of table 4: ``weights.identity=0 weights.pathology=0`` drops the group losses,
    ``network.transformer_layers=0`` drops T, both and ``weights.classification=0`` is the baseline VAE.
    """

    stage: Literal["gsvae"] = "gsvae"
    """Name of the stage."""
    network: NetworkConfig = NetworkConfig()
    """Sizes of the network."""
    weights: LossWeights = LossWeights()
    """Weights of the losses (equations 4 and 10)."""
    group_every: int = Field(default=5, ge=1)
    """Every how many steps the group losses are on; zero otherwise."""
    kl_reduction: KLReduction = "per_element"
    """Whether α weighs the mean divergence of an element or the sum over an image."""
    pathology_pairing: PathologyPairing = "donor"
    """Whose pathology a swapped image is compared with: its donor's, or its own as equation 8 is printed."""


_LOAD: Mapping[str, Callable[[Bundle], IdentityEncoder | ImageTextEncoder]] = {
    "identity": load_identity,
    "pathology": load_image_text,
}
"""Role of a judge to what opens it."""


@dataclass(frozen=True)
class _Built:
    """What `GSVAEStage.build` was given.

    Attributes:
        data: The dataset.
        judges: Role to the judge of a group loss.
    """

    data: DatasetInfo
    judges: Mapping[str, IdentityEncoder | ImageTextEncoder]


class GSVAEStage:
    """Stage 1 of Nie et al., Algorithm 1: `Stage` for `GSVAENetwork`.

    Args:
        config: Settings.
    """

    name = "gsvae"
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = ()
    needs_reports = False
    monitor = "loss_total"
    direction = "min"

    def __init__(self, config: GSVAEConfig) -> None:
        self.config = config
        self.frozen: dict[str, nn.Module] = {}
        self._built: _Built | None = None

    @property
    def inputs(self) -> Mapping[str, str]:
        """Judges that the group losses need; none where both have weight 0."""
        weights = self.config.weights
        identity = {"identity": "identity_encoder"} if weights.identity else {}
        return identity | ({"pathology": "image_text_encoder"} if weights.pathology else {})

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> GSVAENetwork:
        """The network for ``data``; the judges of ``inputs`` go to ``frozen``.

        Raises:
            KeyError: If a judge that the weights ask for is missing.
            BundleError: If a judge is another stage's.
        """
        judges: dict[str, IdentityEncoder | ImageTextEncoder] = {}
        for role, stage in self.inputs.items():
            if role not in inputs:
                raise KeyError(
                    f"gsvae needs the bundle of a {stage!r} judge as input {role!r}; train that stage first, "
                    f"or set weights.{role}=0 to go without its loss."
                )
            judges[role] = _LOAD[role](inputs[role])
        self.frozen, self._built = {**judges}, _Built(data, judges)
        return GSVAENetwork(self.config.network, image_size=data.image_size, findings=len(data.finding_names))

    @property
    def _finding_names(self) -> tuple[str, ...]:
        return require_built(self._built).data.finding_names

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Equation 9, and at every ``group_every``-th step equation 10 (the 5th, 10th, … by default)."""
        group_step = bool(self.inputs) and (step + 1) % self.config.group_every == 0
        partner = random_partners(len(batch), batch.image.device) if group_step else None
        return self._losses(module(batch.image, partner), batch, partner)

    def _losses(self, output: Mapping[str, Tensor], batch: Batch, partner: Tensor | None) -> Losses:
        weights = self.config.weights
        image = batch.image.float()
        labels, known = labels_of(batch, self._finding_names)
        parts = {
            "reconstruction": reconstruction_loss(image, output["reconstruction"], ssim_weight=weights.ssim),
            "kl": kl_loss(output["mean"], output["log_variance"], reduction=self.config.kl_reduction),
            # Equation 6 is a softmax cross-entropy with one-hot labels; findings occur together and are
            # partly unknown.
            "classification": masked_binary_cross_entropy(output["finding_logits"], labels, known),
            "identity": image.new_zeros(()),
            "pathology": image.new_zeros(()),
        }
        if partner is not None:
            parts |= self._group_losses(image, output["swapped"], partner)
        total = (
            parts["reconstruction"]
            + weights.kl * parts["kl"]
            + weights.classification * parts["classification"]
            + weights.identity * parts["identity"]
            + weights.pathology * parts["pathology"]
        )
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def _group_losses(self, image: Tensor, swapped: Tensor, partner: Tensor) -> dict[str, Tensor]:
        """Distances of ``swapped`` from its patient's identity and its donor's pathology, by judges."""
        donor = image[partner] if self.config.pathology_pairing == "donor" else image
        targets = {"identity": image, "pathology": donor}
        losses = {}
        for role, judge in require_built(self._built).judges.items():
            with torch.no_grad():
                target = judge.features(targets[role])
            losses[role] = feature_distance(judge.features(swapped), target)
        return losses

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Metrics with posterior means and each image's pathology swapped with the next image's.

        Returns:
            ``loss_total`` (with the group losses, lower is better) and its parts ``loss_*``; ``ssim`` and
            ``psnr`` [dB] of the reconstruction (higher); ``kl_identity`` and ``kl_pathology`` [nats an
            element]; ``auroc_macro`` and the like from z^n alone, see `finding_metrics` (higher).
        """
        sums: dict[str, float] = defaultdict(float)
        count = 0
        scores: list[tuple[Tensor, Tensor, Tensor]] = []
        with evaluating(module):
            for batch in batches:
                partner = _next_image(batch) if self.inputs else None
                output = module(batch.image, partner, sample=False)
                losses = self._losses(output, batch, partner)
                for name, value in _image_metrics(losses, output, batch.image.float()).items():
                    sums[name] += value * len(batch)
                count += len(batch)
                scores.append((output["finding_logits"], *labels_of(batch, self._finding_names)))
        if not count:
            raise ValueError("The validation split is empty; ingest with a validation share above 0.")
        logits, labels, known = (torch.cat(values) for values in zip(*scores, strict=True))
        means = {name: value / count for name, value in sums.items()}
        return means | finding_metrics(logits, labels, known, self._finding_names)

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``input``, ``reconstruction``, ``donor`` (the next image) and ``swapped`` (with its pathology)."""
        partner = _next_image(batch)
        with evaluating(module):
            output = module(batch.image, partner, sample=False)
        return {
            "input": batch.image,
            "reconstruction": output["reconstruction"].clamp(-1.0, 1.0),
            "donor": batch.image[partner],
            "swapped": output["swapped"].clamp(-1.0, 1.0),
        }

    def export(self, module: nn.Module) -> Export:
        """The network's weights, and the sizes that `load` rebuilds it from."""
        state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
        metadata = {
            "config": self.config.model_dump(mode="json"),
            "image_size": require_built(self._built).data.image_size,
            "finding_names": list(self._finding_names),
        }
        return Export(
            tensors={"model": state},
            metadata=metadata,
            intended_use=(
                "Research on and audits of diagnostic models: images of one patient with another patient's "
                "findings, or without a finding. Made images are no evidence of disease."
            ),
            limits=(
                "What the pathology channel carries is what the judges of the training and the labels of "
                "the dataset could tell apart. Findings outside the dataset's labels may stay with the "
                "patient's identity. Score a counterfactual with judges that the training has not seen."
            ),
        )


def load(bundle: Bundle) -> GSVAENetwork:
    """The trained network of a `gsvae` bundle, in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    bundle.expect(GSVAEStage.name)
    network = rebuild(bundle.metadata)
    network.load_state_dict(bundle.tensors())
    return network.eval()


def rebuild(metadata: Mapping[str, Any]) -> GSVAENetwork:
    """The network that a bundle's metadata describe, without its weights."""
    return GSVAENetwork(
        GSVAEConfig.model_validate(metadata["config"]).network,
        image_size=metadata["image_size"],
        findings=len(metadata["finding_names"]),
    )


def _next_image(batch: Batch) -> Tensor:
    """The next image's index for each image of a batch, ``[B]``; the last one's is the first."""
    return torch.arange(1, len(batch) + 1, device=batch.image.device) % len(batch)


def _image_metrics(losses: Losses, output: Mapping[str, Tensor], image: Tensor) -> dict[str, float]:
    reconstruction = output["reconstruction"]
    squared_error = (reconstruction - image).square().mean(dim=(1, 2, 3))
    divergence = kl_divergence(output["mean"], output["log_variance"]).mean(dim=(0, 2, 3))
    values = {f"loss_{name}": value for name, value in losses.parts.items()} | {
        "loss_total": losses.total,
        "ssim": structural_similarity(image, reconstruction).mean(),
        "psnr": 10 * torch.log10(4.0 / squared_error).mean(),
        "kl_pathology": divergence[-1],
    }
    if len(divergence) > 1:
        values["kl_identity"] = divergence[:-1].mean()
    return {name: float(value) for name, value in values.items()}
