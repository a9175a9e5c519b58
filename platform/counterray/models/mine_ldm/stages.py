"""`mine_ldm`, the last stage: latent diffusion on T_ξ(u), conditioned on attributes by cross-attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterray.bundle import Bundle, BundleError
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.sampling import SamplerConfig, scheduler_for, timesteps_below
from counterray.diffusion.schedule import ScheduleConfig, denoising_loss, training_scheduler
from counterray.diffusion.unet import DenoiserConfig
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.denoiser import AttributeDenoiser
from counterray.models.mine_ldm.model import MineLDM
from counterray.models.mine_ldm.perturbation import Perturbation
from counterray.models.mine_ldm.perturbation_stage import load_perturbation, plain_vae, rebuild_perturbation
from counterray.models.mine_ldm.vae import AttributeVAE
from counterray.models.mine_ldm.vae_stage import rebuild_vae
from counterray.models.predictors.common import evaluating, repeatable, require_built
from counterray.training.stage import Export, Losses, StageConfig


class MineLDMConfig(StageConfig):
    """Settings of the `mine_ldm` stage."""

    stage: Literal["mine_ldm"] = "mine_ldm"
    """Name of the stage."""
    attributes: tuple[str, ...] = Field(default=("sex",), min_length=1)
    """Categorical attributes that images are made under; those of the perturbation."""
    perturbed: bool = True
    """Whether latents pass T_ξ; without, this is the paper's baseline CLDM."""
    denoiser: DenoiserConfig = DenoiserConfig(widths=(64, 128), layers_per_block=2)
    """Size of the denoiser; the default is for 8×8 latents."""
    token_width: int = Field(default=64, ge=1)
    """Channels of a level's embedding (published: 512)."""
    schedule: ScheduleConfig = ScheduleConfig(beta_start=0.002, beta_end=0.02)
    """Noise levels; the published ones."""
    sampler: SamplerConfig = SamplerConfig(steps=100, guidance_scale=1.0)
    """How the bundle draws unless told otherwise. Steps are counted over all timesteps: of 100, 20 lie below
    t0 = 200."""
    start: int = Field(default=200, ge=1)
    """t0, from which images are drawn under other attributes: a fifth of T (paper)."""
    abduction: AbductionConfig = AbductionConfig()
    """What the bundle keeps of an image unless told otherwise; training does not read it."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training samples that are told nothing, which guidance needs. The published code tells half of
    all *batches* nothing and then guides by 1, which does not need it."""
    validation_draws: int = Field(default=64, ge=1)
    """Studies of the validation split whose null intervention is compared with the image."""

    @model_validator(mode="after")
    def _drawable(self) -> MineLDMConfig:
        require_drawable(self.schedule, self.sampler, self.start, self.abduction)
        return self


def require_drawable(
    schedule: ScheduleConfig, sampler: SamplerConfig, start: int, abduction: AbductionConfig
) -> None:
    """Raises `ValueError` unless the sampler can begin at ``start``, and be inverted where that is asked."""
    abduction.require(sampler)
    timesteps_below(scheduler_for(schedule, sampler, None), start)


@dataclass(frozen=True)
class _Built:
    data: DatasetInfo
    space: AttributeSpace
    vae: AttributeVAE
    perturbation: Perturbation | None
    parents: Mapping[str, Bundle]


class MineLDMStage:
    """`Stage` for `AttributeDenoiser`.

    The frozen autoencoder encodes each batch: it is small beside the denoiser.

    Args:
        config: Settings.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.2. The mean squared error is the
        paper's bound; the code takes the absolute one, and a learning rate that is 1e-14 after 100 steps.
    """

    name = "mine_ldm"
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = ()
    needs_reports = False
    monitor = "loss_denoising"
    direction = "min"

    def __init__(self, config: MineLDMConfig) -> None:
        self.config = config
        self.frozen: dict[str, nn.Module] = {}
        self._built: _Built | None = None

    @property
    def inputs(self) -> Mapping[str, str]:
        """The autoencoder, and T_ξ unless it is the baseline without."""
        return {"vae": "mine_vae"} | ({"perturbation": "mine_perturbation"} if self.config.perturbed else {})

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> AttributeDenoiser:
        """The denoiser; autoencoder and T_ξ go to ``frozen``.

        Raises:
            BundleError: If T_ξ was trained on another autoencoder.
            KeyError: If an input is missing.
            ValueError: If the dataset lacks an attribute, or T_ξ is of other attributes.
        """
        config, vae = self.config, plain_vae(inputs, "mine_ldm")
        space = AttributeSpace.of(config.attributes, data)
        perturbation = self._perturbation(inputs, space) if config.perturbed else None
        self._built = _Built(data, space, vae, perturbation, inputs)
        self.frozen = {"vae": vae} | ({"perturbation": perturbation} if perturbation is not None else {})
        return _denoiser(config, space, vae)

    def _perturbation(self, inputs: Mapping[str, Bundle], space: AttributeSpace) -> Perturbation:
        if "perturbation" not in inputs:
            raise KeyError(
                "mine_ldm needs the bundle of a 'mine_perturbation' as input 'perturbation'; train that "
                "stage first, or set perturbed=false for the baseline without."
            )
        bundle = inputs["perturbation"].expect("mine_perturbation")
        if bundle.manifest["parents"]["vae"]["checksum"] != inputs["vae"].checksum:
            raise BundleError(
                f"inputs.perturbation ({bundle.location.uri}) was trained on another vae than inputs.vae "
                f"({inputs['vae'].location.uri}). Give both the same."
            )
        theirs = AttributeSpace.read(bundle.metadata)
        if theirs != space:
            raise ValueError(
                f"attributes = {', '.join(space.levels)}, but inputs.perturbation takes out "
                f"{', '.join(theirs.levels)}; train both with the same attributes."
            )
        return load_perturbation(bundle)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Mean squared error of the predicted noise at random timesteps, conditions dropped at random."""
        network, clean = _network(module), self._latents(batch)
        codes = require_built(self._built).space.codes(batch.attributes, like=clean)
        dropped = torch.rand(len(batch), device=clean.device) < self.config.condition_dropout
        loss = denoising_loss(
            module,
            training_scheduler(self.config.schedule),
            clean,
            noise=torch.randn_like(clean),
            timesteps=torch.randint(self.config.schedule.timesteps, (len(batch),), device=clean.device),
            condition=network.condition(codes.masked_fill(dropped[:, None], torch.nan)),
        )
        total = loss.each.mean()
        return Losses(total, {"denoising": total.detach()})

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        built = require_built(self._built)
        latent = built.vae.standardise(built.vae.encode(batch.image).mean)
        return latent if built.perturbation is None else torch.as_tensor(built.perturbation(latent))

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """The loss with the same draws every time, and what the null intervention changes.

        Returns:
            ``loss_denoising`` (lower is better); ``composition``, the mean absolute difference between an
            image and its null intervention (lower, in units of half the grey range).
        """
        model, total, count = self.assembled(module), 0.0, 0
        differences: list[Tensor] = []
        remaining = self.config.validation_draws
        with evaluating(module), repeatable():
            for batch in batches:
                total += float(self.loss(module, batch, 0).total) * len(batch)
                count += len(batch)
                if remaining > 0:
                    part = batch.select(torch.arange(min(remaining, len(batch)), device=batch.image.device))
                    remaining -= len(part)
                    codes = model.space.codes(part.attributes, like=part.image)
                    image = model.render(
                        model.abduct(part.image, codes), codes, seeds=torch.arange(len(part))
                    )
                    differences.append((image - part.image).abs().mean((1, 2, 3)))
        if not count:
            raise ValueError("The validation split is empty; ingest with a validation share above 0.")
        return {"loss_denoising": total / count, "composition": float(torch.cat(differences).mean())}

    def assembled(self, module: nn.Module) -> MineLDM:
        """The module with the frozen networks around it, ready to draw."""
        built = require_built(self._built)
        return _assemble(self.config, built.vae, _network(module), built.perturbation)

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``input``, ``null``, and for each level ``<attribute>_<level>``: all images with it."""
        model, part = self.assembled(module), batch.select(torch.arange(min(8, len(batch))))
        codes = model.space.codes(part.attributes, like=part.image)
        grids = {"input": part.image}
        with evaluating(module):
            noise, seeds = model.abduct(part.image, codes), torch.arange(len(part))
            grids["null"] = model.render(noise, codes, seeds=seeds)
            for column, (name, levels) in enumerate(model.space.levels.items()):
                for code, level in enumerate(levels):
                    asked = codes.clone()
                    asked[:, column] = code
                    grids[f"{name}_{level}"] = model.render(noise, asked, seeds=seeds)
        return grids

    def export(self, module: nn.Module) -> Export:
        """The denoiser with copies of autoencoder and T_ξ: all that generating needs."""
        built = require_built(self._built)
        networks = {"model": module, **self.frozen}
        return Export(
            tensors={
                name: {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
                for name, network in networks.items()
            },
            metadata={
                "config": self.config.model_dump(mode="json"),
                "inputs": {role: parent.metadata for role, parent in built.parents.items()},
                "image_size": built.data.image_size,
                **built.space.described(),
            },
            intended_use=(
                "Audits of diagnostic models: images of a given patient with another attribute. Made images "
                "are no evidence of disease."
            ),
            limits=(
                "What an attribute changes in these images is what it goes with in the training data, causes "
                "and confounders alike. Check with a judge apart that an image shows the attribute asked "
                "for, and against its null intervention that nothing else changed."
            ),
        )


def _network(module: nn.Module) -> AttributeDenoiser:
    assert isinstance(module, AttributeDenoiser)
    return module


def _denoiser(config: MineLDMConfig, space: AttributeSpace, vae: AttributeVAE) -> AttributeDenoiser:
    channels, size, _ = vae.latent_shape
    return AttributeDenoiser(config.denoiser, space, channels=channels, size=size, width=config.token_width)


def _assemble(
    config: MineLDMConfig, vae: AttributeVAE, denoiser: AttributeDenoiser, perturbation: Perturbation | None
) -> MineLDM:
    return MineLDM(
        vae,
        denoiser,
        perturbation,
        schedule=config.schedule,
        sampler=config.sampler,
        start=config.start,
        abduction=config.abduction,
    )


def load(bundle: Bundle) -> MineLDM:
    """The trained model of a `mine_ldm` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    metadata = bundle.expect(MineLDMStage.name).metadata
    config = MineLDMConfig.model_validate(metadata["config"])
    vae, perturbation = rebuild_vae(metadata["inputs"]["vae"]), None
    vae.load_state_dict(bundle.tensors("vae"))
    if config.perturbed:
        perturbation = rebuild_perturbation(metadata["inputs"]["perturbation"])
        perturbation.load_state_dict(bundle.tensors("perturbation"))
    denoiser = _denoiser(config, AttributeSpace.read(metadata), vae)
    denoiser.load_state_dict(bundle.tensors())
    return _assemble(config, vae, denoiser, perturbation).eval().requires_grad_(False)
