"""A trained `pathology_ldm` with all that generating needs: gsvae, image-text encoder, denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from counterray.diffusion.drift import Drift
from counterray.diffusion.inversion import invert
from counterray.diffusion.noise_optimisation import Features
from counterray.diffusion.sampling import SamplerConfig, initial_noise, sample
from counterray.diffusion.schedule import ScheduleConfig
from counterray.models.gsvae.network import GSVAENetwork
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
        drift: Drift | None,
        text: TextEncoder,
    ) -> None:
        super().__init__()
        self.gsvae, self.judge, self.denoiser = gsvae, judge, denoiser
        self.text = text
        self.schedule, self.sampler, self.drift = schedule, sampler, drift

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

    def features(self, image: Tensor) -> Tensor:
        """Pathology features ``[B, D]`` of unit length; differentiable."""
        return self.judge.features(image)

    def noise(self, seeds: Tensor) -> Tensor:
        """z_T ``[B, 1, h, w]``, each row from its own seed."""
        return initial_noise(seeds, (1, self.denoiser.size, self.denoiser.size)).to(self.device)

    def draw(
        self,
        condition: TextStates,
        *,
        noise: Tensor,
        seeds: Tensor | None = None,
        sampler: SamplerConfig | None = None,
    ) -> Tensor:
        """z^n ``[B, 1, h, w]`` drawn from prompts (equation 16).

        Args:
            condition: States of B prompts.
            noise: z_T ``[B, 1, h, w]``.
            seeds: ``[B]`` long, for samplers that draw noise in each step.
            sampler: Instead of the bundle's own.
        """
        latents = sample(
            self.denoiser,
            self.schedule,
            sampler or self.sampler,
            condition,
            noise=noise,
            seeds=seeds,
            null=self.denoiser.null,
            drift=self.drift,
        )
        return self.denoiser.restore(latents)

    def invert(
        self, condition: TextStates, pathology: Tensor, *, sampler: SamplerConfig | None = None
    ) -> Tensor:
        """The z_T ``[B, 1, h, w]`` from which prompts draw the given z^n, up to the inversion's error."""
        return invert(
            self.denoiser,
            self.schedule,
            sampler or self.sampler,
            condition,
            latents=self.denoiser.standardise(pathology),
            null=self.denoiser.null,
            drift=self.drift,
        )

    def image_features(self, identity: Tensor) -> Features:
        """Standardised pathology latents to the features of the images they make of rows of ``identity``."""
        return lambda latents, rows: self.features(
            self.decode(identity[rows], self.denoiser.restore(latents))
        )

    def prompts(self, texts: Sequence[str]) -> TextStates:
        """States of ``texts``."""
        return self.text.encode(texts)
