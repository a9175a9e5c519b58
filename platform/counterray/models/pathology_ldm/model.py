"""A trained `pathology_ldm` with all that generating needs: gsvae, image-text encoder, denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.drift import Drift
from counterray.diffusion.inversion import invert
from counterray.diffusion.noise_optimisation import Features
from counterray.diffusion.sampling import OnStep, SamplerConfig, initial_noise, sample, seen_as
from counterray.diffusion.schedule import ScheduleConfig
from counterray.models.gsvae.network import GSVAENetwork
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.network import PathologyDenoiser
from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.nn.text import TextEncoder, TextStates


class PathologyLDM(nn.Module):
    """Images to identity and pathology channels and back, and pathology channels from prompts.

    Args:
        gsvae: Stage 1.
        judge: The image-text encoder, whose image tower gives pathology features.
        denoiser: Stage 2.
        schedule: What the denoiser was trained on.
        sampler: How it draws unless told otherwise.
        abduction: What counterfactuals keep of an image.
        drift: Latent drifting in sampling, ``None`` for none.
        text: What reads prompts.
    """

    def __init__(
        self,
        gsvae: GSVAENetwork,
        judge: ImageTextEncoder,
        denoiser: PathologyDenoiser,
        *,
        schedule: ScheduleConfig,
        sampler: SamplerConfig,
        abduction: AbductionConfig,
        drift: Drift | None,
        text: TextEncoder,
    ) -> None:
        super().__init__()
        self.gsvae, self.judge, self.denoiser = gsvae, judge, denoiser
        self.text = text
        self.schedule, self.sampler, self.drift = schedule, sampler, drift
        self.abduction = abduction

    @property
    def image_size(self) -> int:
        """Edge of the images [px]."""
        return self.gsvae.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Identity ``[B, n - 1, h, w]`` and pathology ``[B, 1, h, w]`` channels (posterior means)."""
        mean, _ = self.gsvae.encode(image.to(self.device))
        return mean[:, :-1], mean[:, -1:]

    def decode(self, identity: Tensor, pathology: Tensor) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1]; differentiable."""
        return self.gsvae.decode(torch.cat([identity, pathology], dim=1)).clamp(-1.0, 1.0)

    def abduct(self, image: Tensor) -> Abducted:
        """What the images ``[B, 1, H, W]`` are made of, as far as the model keeps it."""
        identity, pathology = self.encode(image)
        if not self.abduction.residual:
            return Abducted(identity, pathology)
        with torch.no_grad():
            return Abducted(identity, pathology, image.to(self.device) - self.decode(identity, pathology))

    def render(self, patients: Abducted, pathology: Tensor) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1] of these patients with a pathology; differentiable."""
        image = self.decode(patients.identity, pathology)
        return image if patients.residual is None else (image + patients.residual).clamp(-1.0, 1.0)

    def features(self, image: Tensor) -> Tensor:
        """Pathology features ``[B, D]`` of unit length; differentiable."""
        return self.judge.features(image)

    def noise(self, seeds: Tensor) -> Tensor:
        """z_T ``[B, 1, h, w]``, each row from its own seed."""
        return initial_noise(seeds, (1, self.denoiser.size, self.denoiser.size)).to(self.device)

    def initial(self, patients: Abducted, own: Sequence[str], seeds: Tensor) -> Tensor:
        """z_T ``[B, 1, h, w]`` of these patients' counterfactuals.

        Args:
            patients: The patients.
            own: What each one's own prompt says; read only where noise is inverted.
            seeds: ``[B]`` long; read only where noise is fresh.
        """
        if self.abduction.noise == "fresh":
            return self.noise(seeds)
        return self.invert(self.prompts(own), patients.pathology)

    def draw(
        self,
        condition: TextStates,
        *,
        noise: Tensor,
        seeds: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """z^n ``[B, 1, h, w]`` drawn from prompts (equation 16).

        Args:
            condition: States of B prompts.
            noise: z_T ``[B, 1, h, w]``.
            seeds: ``[B]`` long, for samplers that draw noise in each step.
            on_step: Told of the sampler's steps and of z^n by then.
        """
        latents = sample(
            self.denoiser,
            self.schedule,
            self.sampler,
            condition,
            noise=noise,
            seeds=seeds,
            null=self.denoiser.null,
            drift=self.drift,
            on_step=None if on_step is None else seen_as(on_step, self.denoiser.restore),
        )
        return self.denoiser.restore(latents)

    def invert(self, condition: TextStates, pathology: Tensor) -> Tensor:
        """The z_T ``[B, 1, h, w]`` from which prompts draw the given z^n, up to the inversion's error.

        Without guidance: it describes what is there; guidance would have it be more than that (Mokady et
        al., 2023, https://arxiv.org/abs/2211.09794, section 3.1).
        """
        return invert(
            self.denoiser,
            self.schedule,
            self.sampler.model_copy(update={"guidance_scale": 1.0}),
            condition,
            latents=self.denoiser.standardise(pathology),
            drift=self.drift,
            iterations=self.abduction.iterations,
        )

    def image_features(self, patients: Abducted) -> Features:
        """Standardised pathology latents to the features of the images they make of rows of ``patients``."""
        return lambda latents, rows: self.features(
            self.render(patients.select(rows), self.denoiser.restore(latents))
        )

    def prompts(self, texts: Sequence[str]) -> TextStates:
        """States of ``texts``."""
        return self.text.encode(texts)
