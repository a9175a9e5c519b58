"""`pathology_ldm` as a stage: text-guided diffusion of the pathology channel that `gsvae` disentangled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterray.bundle import Bundle, BundleError
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.drift import Drift, DriftConfig, resolve
from counterray.diffusion.sampling import SamplerConfig
from counterray.diffusion.schedule import (
    ScheduleConfig,
    denoising_loss,
    sampling_scheduler,
    training_scheduler,
)
from counterray.diffusion.unet import DenoiserConfig
from counterray.models.gsvae.network import GSVAENetwork
from counterray.models.gsvae.stages import load as load_gsvae
from counterray.models.gsvae.stages import rebuild as rebuild_gsvae
from counterray.models.pathology_ldm.encoding import IDENTITY, PATHOLOGY, PRESENT, STATES, EncodeConfig
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.network import PathologyDenoiser
from counterray.models.pathology_ldm.prompts import PromptSource
from counterray.models.pathology_ldm.text import open_text_encoder, weights_checksum
from counterray.models.predictors.common import (
    evaluating,
    finding_metrics,
    labels_of,
    repeatable,
    require_built,
)
from counterray.models.predictors.image_text import TOKENIZER_FILE, ImageTextEncoder
from counterray.models.predictors.image_text import load as load_text
from counterray.models.predictors.image_text import rebuild as rebuild_text
from counterray.nn.text import TextEncoder, TextStates
from counterray.training.stage import Export, Losses, StageConfig


class PathologyLDMConfig(StageConfig):
    """Settings of the `pathology_ldm` stage."""

    stage: Literal["pathology_ldm"] = "pathology_ldm"
    """Name of the stage."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Size of the denoiser; the default is for 64x64 images (16x16 latents)."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Noise levels and what the network predicts."""
    drift: DriftConfig = DriftConfig()
    """Latent drifting, in training and in sampling."""
    sampler: SamplerConfig = SamplerConfig(steps=20)
    """How validation draws, and what the bundle draws with unless told otherwise."""
    abduction: AbductionConfig = AbductionConfig()
    """What the bundle's counterfactuals keep of an image unless told otherwise; training does not read it."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training samples whose prompt is replaced by the empty one, which guidance needs."""
    validation_draws: int = Field(default=256, ge=1)
    """Studies of the validation split that are drawn anew from their prompts and judged."""

    @model_validator(mode="after")
    def _sampler_that_can_run(self) -> PathologyLDMConfig:
        self.abduction.require(self.sampler)
        sampling_scheduler(self.schedule, self.sampler.scheduler, self.sampler.steps)
        return self

    @model_validator(mode="after")
    def _drift_that_does_something(self) -> PathologyLDMConfig:
        if "auto" in (self.drift.value, self.drift.forward, self.drift.reverse):
            raise ValueError(
                "drift: auto is the mean that z_T has in training, which is 0 here, as z^n is standardised. "
                "Give a number, or leave drift out."
            )
        return self


@dataclass(frozen=True)
class _Built:
    """What `PathologyLDMStage.build` was given, and the frozen networks that it made of it.

    Attributes:
        gsvae: Decodes latents.
        judge: Says which findings an image shows.
        text: The encoder that made the text states.
        described: How it is opened again, and where the prompts came from.
        drift: Latent drifting of the noise levels.
        parents: Role to bundle.
        finding_names: Of the dataset.
    """

    gsvae: GSVAENetwork
    judge: ImageTextEncoder
    text: TextEncoder
    described: Mapping[str, Any]
    drift: Drift
    parents: Mapping[str, Bundle]
    finding_names: tuple[str, ...]


class PathologyLDMStage:
    """Stage 2 of Nie et al., Algorithm 1: `Stage` for `PathologyDenoiser`.

    It reads the tensors of `LatentEncoder` and runs neither encoder while training. Validation draws z^n from
    a study's prompt, decodes it with the study's own identity channels, and asks the image-text encoder's
    finding head what the image shows.

    Args:
        config: Settings.
    """

    name = "pathology_ldm"
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = (PATHOLOGY, IDENTITY, STATES, PRESENT)
    needs_reports = False
    monitor = "auroc_macro"
    direction = "max"
    inputs: Mapping[str, str] = {"gsvae": "gsvae", "text": "image_text_encoder"}

    def __init__(self, config: PathologyLDMConfig) -> None:
        self.config = config
        self.frozen: dict[str, nn.Module] = {}
        self._built: _Built | None = None

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> PathologyDenoiser:
        """The denoiser for ``data``; gsvae and judge of ``inputs`` go to ``frozen``.

        Raises:
            KeyError: If an input is missing.
            ValueError: If ``data`` has no latents.
            BundleError: If the latents were made by other bundles than the inputs.
        """
        self._require(inputs, data)
        gsvae, judge = load_gsvae(inputs["gsvae"]).requires_grad_(False), load_text(inputs["text"])
        described = {name: data.encoding[name] for name in ("text", "text_weights", "prompts")}
        latents, config = data.tensors[PATHOLOGY], self.config
        built = _Built(
            gsvae=gsvae,
            judge=judge,
            text=_text_encoder(described, judge),
            described=described,
            drift=resolve(config.drift, config.schedule, channels=1),
            parents=inputs,
            finding_names=data.finding_names,
        )
        self.frozen, self._built = {"gsvae": gsvae, "judge": judge}, built
        return PathologyDenoiser(
            config.denoiser,
            size=latents.shape[-1],
            mean=latents.mean,
            std=latents.std,
            null=built.text.encode([""]),
        )

    def _require(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> None:
        for role, stage in self.inputs.items():
            if role not in inputs:
                raise KeyError(f"pathology_ldm needs the bundle of a {stage!r} as input {role!r}.")
            inputs[role].expect(stage)
        missing = [name for name in self.needs_tensors if name not in data.tensors]
        if missing:
            raise ValueError(
                f"The dataset carries no {', '.join(missing)} of its studies. Make them once with python -m "
                "jobs encode, and train on its result."
            )
        for role in self.inputs:
            if data.parents.get(role) != inputs[role].checksum:
                raise BundleError(
                    f"The dataset's latents were made by another {role} than inputs.{role} "
                    f"({inputs[role].location.uri}). Give the same bundle to encode and to train."
                )

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """Mean squared error of the predicted noise at random timesteps, prompts dropped at random."""
        config, network = self.config, _network(module)
        clean = network.standardise(batch.tensors[PATHOLOGY])
        condition = _condition(batch)
        kept = torch.rand(len(batch), device=clean.device) >= config.condition_dropout
        loss = denoising_loss(
            module,
            training_scheduler(config.schedule),
            clean,
            noise=torch.randn_like(clean),
            timesteps=torch.randint(config.schedule.timesteps, (len(batch),), device=clean.device),
            condition=condition.where(kept, network.null),
            drift=require_built(self._built).drift.forward,
        )
        total = loss.each.mean()
        return Losses(total, {"denoising": total.detach()})

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Denoising loss, and what a judge sees in images drawn from the studies' prompts.

        Returns:
            ``loss_denoising`` (lower is better) with the same noise every time; ``auroc_macro`` and the like
            of the images drawn (`finding_metrics`, higher); ``reconstruction_auroc_macro`` and the like of
            the same studies' reconstructions, what the draws can reach.
        """
        model = self.assembled(module)
        drawn, kept, parts = [], [], []
        total, count, remaining = 0.0, 0, self.config.validation_draws
        with evaluating(module), repeatable():
            for batch in batches:
                total += float(self.loss(module, batch, 0).total) * len(batch)
                count += len(batch)
                if remaining <= 0:
                    continue
                part = batch.select(torch.arange(min(remaining, len(batch)), device=batch.image.device))
                remaining -= len(part)
                seeds = torch.arange(remaining, remaining + len(part))
                pathology = model.draw(_condition(part), noise=model.noise(seeds), seeds=seeds)
                drawn.append(_judged(model, part, pathology))
                kept.append(_judged(model, part, part.tensors[PATHOLOGY]))
                parts.append(part)
        if not parts:
            raise ValueError("The validation split is empty; ingest with a validation share above 0.")
        metrics = self._findings(torch.cat(drawn), torch.cat(kept), parts)
        return {"loss_denoising": total / count, **metrics}

    def _findings(self, drawn: Tensor, kept: Tensor, parts: Sequence[Batch]) -> dict[str, float]:
        built = require_built(self._built)
        judge = built.judge
        names = [name for name in built.finding_names if name in judge.finding_names]
        columns = [judge.finding_names.index(name) for name in names]
        truths = [labels_of(part, names) for part in parts]
        truth = torch.cat([labels for labels, _ in truths])
        known = torch.cat([mask for _, mask in truths])
        return {
            **finding_metrics(drawn[:, columns], truth, known, names),
            **finding_metrics(kept[:, columns], truth, known, names, prefix="reconstruction_auroc"),
        }

    def assembled(self, module: nn.Module) -> PathologyLDM:
        """The module with the frozen networks around it, ready to draw."""
        built = require_built(self._built)
        return assemble(
            self.config, built.gsvae, built.judge, _network(module), drift=built.drift, text=built.text
        )

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``input``, ``reconstruction``, and ``drawn``: the pathology drawn anew from the study's prompt."""
        part = batch.select(torch.arange(min(16, len(batch)), device=batch.image.device))
        model, seeds = self.assembled(module), torch.arange(len(part))
        with evaluating(module):
            drawn = model.draw(_condition(part), noise=model.noise(seeds), seeds=seeds)
            identity = part.tensors[IDENTITY]
            return {
                "input": part.image,
                "reconstruction": model.decode(identity, part.tensors[PATHOLOGY]),
                "drawn": model.decode(identity, drawn),
            }

    def export(self, module: nn.Module) -> Export:
        """The denoiser with copies of gsvae and image-text encoder: all that generating needs.

        A published text encoder stays in its own folder, which the bundle names with a checksum.
        """
        network, built = _network(module), require_built(self._built)
        parent = built.parents["gsvae"].metadata
        return Export(
            tensors={
                "model": {name: value.detach().cpu() for name, value in module.state_dict().items()},
                "gsvae": built.gsvae.state_dict(),
                "text": built.judge.state_dict(),
            },
            metadata={
                "config": self.config.model_dump(mode="json"),
                "gsvae": parent,
                "text": built.parents["text"].metadata,
                "text_encoder": dict(built.described),
                "size": network.size,
                "latent_mean": network.mean,
                "latent_std": network.std,
                "image_size": parent["image_size"],
                "finding_names": list(built.finding_names),
            },
            files={TOKENIZER_FILE: built.parents["text"].file(TOKENIZER_FILE)},
            intended_use=(
                "Research on and audits of diagnostic models: images of a given patient with a pathology "
                "asked for in words or by finding. Made images are no evidence of disease."
            ),
            limits=(
                "What a prompt can ask for is what the reports of the training split said often enough. Rare "
                "findings are drawn less reliably: look at their scores, or optimise the initial noise. The "
                "vocabulary holds fragments of the training reports."
            ),
        )


def _condition(batch: Batch) -> TextStates:
    return TextStates(batch.tensors[STATES], batch.tensors[PRESENT] > 0.5)


def _judged(model: PathologyLDM, batch: Batch, pathology: Tensor) -> Tensor:
    """The judge's finding logits of the batch's identities with ``pathology``, ``[B, F]``."""
    return model.judge.finding_logits(model.features(model.decode(batch.tensors[IDENTITY], pathology)))


def _network(module: nn.Module) -> PathologyDenoiser:
    assert isinstance(module, PathologyDenoiser)
    return module


def prompt_source(bundle: Bundle) -> PromptSource:
    """Where the prompts came from that the bundle was trained on."""
    source: PromptSource = bundle.expect(PathologyLDMStage.name).metadata["text_encoder"]["prompts"]
    return source


def _text_encoder(described: Mapping[str, Any], judge: ImageTextEncoder) -> TextEncoder:
    """The very encoder that made the text states.

    Raises:
        BundleError: If its weights are others now.
    """
    config = EncodeConfig.model_validate({"text": described["text"]}).text
    encoder = open_text_encoder(config, judge)
    if weights_checksum(encoder) != described["text_weights"]:
        raise BundleError(
            f"The text encoder {config.kind!r} has other weights than the one that made the text states. "
            "Put back the folder's files, or encode and train anew."
        )
    return encoder


def assemble(
    config: PathologyLDMConfig,
    gsvae: GSVAENetwork,
    judge: ImageTextEncoder,
    denoiser: PathologyDenoiser,
    *,
    drift: Drift | None,
    text: TextEncoder,
) -> PathologyLDM:
    """The whole model of its parts."""
    return PathologyLDM(
        gsvae,
        judge,
        denoiser,
        schedule=config.schedule,
        sampler=config.sampler,
        abduction=config.abduction,
        drift=drift if drift and bool(drift.reverse.any()) else None,
        text=text,
    )


def load(bundle: Bundle) -> PathologyLDM:
    """The trained model of a `pathology_ldm` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    bundle.expect(PathologyLDMStage.name)
    metadata = bundle.metadata
    config = PathologyLDMConfig.model_validate(metadata["config"])
    gsvae = rebuild_gsvae(metadata["gsvae"])
    gsvae.load_state_dict(bundle.tensors("gsvae"))
    judge = rebuild_text(metadata["text"], bundle.file(TOKENIZER_FILE))
    judge.load_state_dict(bundle.tensors("text"))
    text = _text_encoder(metadata["text_encoder"], judge.eval())
    denoiser = PathologyDenoiser(
        config.denoiser,
        size=metadata["size"],
        mean=metadata["latent_mean"],
        std=metadata["latent_std"],
        null=text.encode([""]),
    )
    denoiser.load_state_dict(bundle.tensors())
    drift = resolve(config.drift, config.schedule, channels=1)
    model = assemble(config, gsvae, judge, denoiser, drift=drift, text=text)
    return model.eval().requires_grad_(False)
