"""Trained models that set attributes of images: the latent diffusion, and the conditional autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from counterray.diffusion.abduction import AbductionConfig
from counterray.diffusion.inversion import invert
from counterray.diffusion.likelihood import variational_bound
from counterray.diffusion.sampling import (
    OnStep,
    SamplerConfig,
    initial_noise,
    noised,
    sample,
    seen_as,
)
from counterray.diffusion.schedule import ScheduleConfig
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.denoiser import AttributeDenoiser
from counterray.models.mine_ldm.perturbation import Perturbation
from counterray.models.mine_ldm.vae import AttributeVAE
from counterray.nn.gaussian import kl_divergence, reparameterise


@dataclass(frozen=True)
class AttributeNoise:
    """What an image is made of, apart from its attributes.

    Attributes:
        latent: ``[B, C, h, w]`` from which images are made: the clean latent, or the noise that it is
            inverted to.
        codes: ``[B, m]`` attributes that were observed, NaN where not known.
        residual: What generation under the observed attributes leaves out of the image ``[B, 1, H, W]``;
            ``None`` where that is not kept, or is another for every seed.
        image: The image ``[B, 1, H, W]``, where the residual is another for every seed.
    """

    latent: Tensor
    codes: Tensor
    residual: Tensor | None = None
    image: Tensor | None = None


class AttributeModel(Protocol):
    """Images and attributes to noise, and noise under other attributes to images."""

    space: AttributeSpace

    @property
    def seeded(self) -> bool:
        """Whether another seed makes another image."""
        ...

    @property
    def image_size(self) -> int:
        """Edge of the images [px]."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def abduct(self, image: Tensor, codes: Tensor) -> AttributeNoise:
        """The noise of images ``[B, 1, H, W]`` with attributes ``[B, m]``."""
        ...

    def render(
        self, noise: AttributeNoise, codes: Tensor, *, seeds: Tensor, on_step: OnStep | None = None
    ) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1] of the noise under attributes ``[B, m]``.

        Args:
            noise: Of B images.
            codes: Their attributes.
            seeds: ``[B]`` long, of what is drawn on the way.
            on_step: Told of a sampler's steps and the images by then.
        """
        ...

    def draw(self, codes: Tensor, generator: Generator) -> Tensor:
        """Images of nobody's with attributes ``[B, m]``."""
        ...

    def bound(self, image: Tensor, codes: Tensor) -> Tensor:
        """A bound of the negative log-likelihood ``[B]`` [nats], by one draw of torch's global state."""
        ...


class ConditionalVAE(nn.Module):
    """Implements `AttributeModel` for an autoencoder that is told attributes: noise is the posterior mean.

    Args:
        vae: Told attributes.

    Raises:
        ValueError: If it is told none.
    """

    def __init__(self, vae: AttributeVAE) -> None:
        super().__init__()
        if vae.space is None:
            raise ValueError("The mine_vae was trained without attributes: it sets none by itself.")
        self.vae, self.space = vae, vae.space

    @property
    def seeded(self) -> bool:
        """No: nothing is drawn."""
        return False

    @property
    def image_size(self) -> int:
        """Edge of the images [px]."""
        return self.vae.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def abduct(self, image: Tensor, codes: Tensor) -> AttributeNoise:
        """Posterior means."""
        return AttributeNoise(self.vae.encode(image.to(self.device), codes).mean, codes)

    def render(
        self, noise: AttributeNoise, codes: Tensor, *, seeds: Tensor, on_step: OnStep | None = None
    ) -> Tensor:
        """Decodes the same latent with other attributes; nothing is drawn."""
        return self.vae.decode(noise.latent, codes)

    def draw(self, codes: Tensor, generator: Generator) -> Tensor:
        """Decodes draws of the prior."""
        shape = (len(codes), *self.vae.latent_shape)
        latent = torch.randn(shape, generator=generator, device=generator.device)
        return self.vae.decode(latent.to(self.device), codes)

    def bound(self, image: Tensor, codes: Tensor) -> Tensor:
        """Negative evidence lower bound with Laplacian pixels of scale 1: ``Σ|x - x̂| + HW log 2 + KL``."""
        posterior = self.vae.encode(image, codes)
        latent = reparameterise(posterior.mean, posterior.log_variance)
        error = (self.vae.decode_all(latent, codes).image - image).abs() + math.log(2.0)
        divergence = kl_divergence(posterior.mean, posterior.log_variance)
        return error.sum((1, 2, 3)) + divergence.sum((1, 2, 3))


class MineLDM(nn.Module):
    """Implements `AttributeModel`: encode, T_ξ, diffuse in part, denoise under other attributes, decode.

    Reduced-variance sampling begins at ``start``, t0 of T: a latent keeps what the noise up to there leaves
    of it, and the rest is drawn under the attributes. What is decoded is a draw of T(u), not u: T_ξ has no
    inverse in the paper either.

    Args:
        vae: Told no attributes.
        denoiser: Of latents T(u), told the attributes.
        perturbation: T_ξ; ``None`` for the baseline without it.
        schedule: What the denoiser was trained on.
        sampler: How it draws; its steps are counted over all of T, of which those below ``start`` are run.
        start: t0.
        abduction: What is kept of an image.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, sections 3.2 and 3.3. The published sampler
        denoises the clean latent from t = 999 as if it were noise, without T_ξ.
    """

    def __init__(
        self,
        vae: AttributeVAE,
        denoiser: AttributeDenoiser,
        perturbation: Perturbation | None,
        *,
        schedule: ScheduleConfig,
        sampler: SamplerConfig,
        start: int,
        abduction: AbductionConfig,
    ) -> None:
        super().__init__()
        self.vae, self.denoiser, self.perturbation = vae, denoiser, perturbation
        self.space = denoiser.space
        self.schedule, self.sampler, self.start, self.abduction = schedule, sampler, start, abduction

    @property
    def seeded(self) -> bool:
        """Whether noise is drawn, rather than read off the image."""
        return self.abduction.noise == "fresh" or self.sampler.stochastic

    @property
    def image_size(self) -> int:
        """Edge of the images [px]."""
        return self.vae.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def encode(self, image: Tensor) -> Tensor:
        """T(u) ``[B, C, h, w]`` of images ``[B, 1, H, W]``; u itself without T_ξ."""
        latent = self.vae.standardise(self.vae.encode(image.to(self.device)).mean)
        return latent if self.perturbation is None else torch.as_tensor(self.perturbation(latent))

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1] of standardised latents."""
        return self.vae.decode(self.vae.restore(latent))

    def abduct(self, image: Tensor, codes: Tensor) -> AttributeNoise:
        """The latent: clean where noise is fresh, and inverted to the noise at t0 where it is not."""
        latent = self.encode(image)
        keeps = self.abduction.residual
        if self.abduction.noise == "fresh":
            return AttributeNoise(latent, codes, image=image.to(self.device) if keeps else None)
        # Without guidance: it describes what is there (Mokady et al., 2023,
        # https://arxiv.org/abs/2211.09794, section 3.1).
        noisy = invert(
            self.denoiser,
            self.schedule,
            self.sampler.model_copy(update={"guidance_scale": 1.0}),
            self.denoiser.condition(codes),
            latents=latent,
            iterations=self.abduction.iterations,
            start=self.start,
        )
        found = AttributeNoise(noisy, codes)
        if not keeps:
            return found
        # Of the whole way, not of the decoder alone: what inversion gets wrong then cancels. An inverted
        # latent is sampled without noise, so the seed says nothing.
        seeds = torch.zeros(len(codes), dtype=torch.long)
        return replace(found, residual=image.to(self.device) - self.render(found, codes, seeds=seeds))

    def render(
        self, noise: AttributeNoise, codes: Tensor, *, seeds: Tensor, on_step: OnStep | None = None
    ) -> Tensor:
        """Denoises from t0 under other attributes, and decodes; fresh noise is of each row's seed."""
        noisy, residual = noise.latent, noise.residual
        if self.abduction.noise == "fresh":
            fresh = initial_noise(seeds, self.vae.latent_shape).to(self.device)
            noisy = noised(self.schedule, self.sampler, noisy, noise=fresh, start=self.start)
        if noise.image is not None:
            residual = noise.image - self.decode(self._sampled(noisy, noise.codes, seeds, start=self.start))

        def finished(latent: Tensor) -> Tensor:
            image = self.decode(latent)
            return image if residual is None else (image + residual).clamp(-1.0, 1.0)

        shown = None if on_step is None else seen_as(on_step, finished)
        return finished(self._sampled(noisy, codes, seeds, start=self.start, on_step=shown))

    def draw(self, codes: Tensor, generator: Generator) -> Tensor:
        """Denoises pure noise from T."""
        seeds = torch.randint(2**62, (len(codes),), generator=generator, device=generator.device).cpu()
        noise = initial_noise(seeds, self.vae.latent_shape).to(self.device)
        return self.decode(self._sampled(noise, codes, seeds, start=None))

    def bound(self, image: Tensor, codes: Tensor) -> Tensor:
        """`variational_bound` of T(u) alone: the decoder has no density."""
        condition = self.denoiser.condition(codes)
        return variational_bound(self.denoiser, self.schedule, self.encode(image), condition)

    def _sampled(
        self,
        noise: Tensor,
        codes: Tensor,
        seeds: Tensor,
        *,
        start: int | None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        return sample(
            self.denoiser,
            self.schedule,
            self.sampler,
            self.denoiser.condition(codes),
            noise=noise,
            seeds=seeds,
            null=self.denoiser.null(self.device),
            start=start,
            on_step=on_step,
        )
