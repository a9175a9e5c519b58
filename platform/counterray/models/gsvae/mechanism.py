"""`gsvae` as an image `Mechanism`: a patient's identity channels with an observed or another pathology."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from counterray.causal.mechanism import Values
from counterray.models.gsvae.bank import PathologyBank, findings_of
from counterray.models.gsvae.network import GSVAENetwork
from counterray.models.gsvae.stages import GSVAEConfig
from counterray.nn.gaussian import kl_divergence, reparameterise


@dataclass(frozen=True)
class GSVAENoise:
    """What an image is made of, apart from its parents.

    Attributes:
        identity: Posterior mean of the identity channels ``[B, n - 1, h, w]``.
        pathology: Posterior mean of the pathology channel ``[B, 1, h, w]``.
        findings: ``[B, F]``, the findings that ``pathology`` shows, NaN where not known; ``None`` where it
            was taken from a given image and stands whatever the parents say.
    """

    identity: Tensor
    pathology: Tensor
    findings: Tensor | None


class GSVAEMechanism:
    """Implements `Mechanism`: identity from the image, pathology from the image, a donor or a bank.

    Parents are read by the names ``finding.<name>``, ``age`` and ``sex``; all others are ignored.
    ``predict`` under unchanged findings keeps the observed pathology channel, so that
    ``predict(abduct(x, pa), pa)`` is the reconstruction; under changed ones it takes the channel of the
    bank's best match: exactly the findings asked for, then nearest in sex, age and identity channels.

    Args:
        network: A trained network, as `load` gives it.
        config: The stage's settings; they fix the observation variance of `loss`.
        finding_names: Findings in the order of the dataset.
        bank: Pathology channels of training images; without it, findings cannot be changed.
    """

    def __init__(
        self,
        network: GSVAENetwork,
        config: GSVAEConfig,
        *,
        finding_names: Sequence[str],
        bank: PathologyBank | None = None,
    ) -> None:
        self.network = network
        self.finding_names = tuple(finding_names)
        self.bank = bank
        self.observation_variance = _observation_variance(network, config)

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Negative evidence lower bound ``[B]`` [nats], by one draw of z (torch's global random state).

        ``-log N(x; D(T(z)), s) + KL`` with the variance s for which the training loss, without SSIM and
        supervision, is this bound up to a factor: ``s = α HW / (2 n h w)`` with α per element and
        ``s = α HW / 2`` with α per image.
        """
        mean, log_variance = self.network.encode(value)
        error = (self.network.decode(reparameterise(mean, log_variance)) - value).square()
        variance = self.observation_variance
        pixels = 0.5 * (error / variance + math.log(2 * math.pi * variance))
        return pixels.sum(dim=(1, 2, 3)) + kl_divergence(mean, log_variance).sum(dim=(1, 2, 3))

    @torch.no_grad()
    def abduct(self, value: Tensor, parents: Values) -> GSVAENoise:
        """Posterior means of ``value`` ``[B, 1, H, W]``, and the findings that it shows."""
        mean, _ = self.network.encode(value)
        findings = findings_of(parents, self.finding_names, like=value)
        return GSVAENoise(identity=mean[:, :-1], pathology=mean[:, -1:], findings=findings)

    @torch.no_grad()
    def with_pathology(self, noise: GSVAENoise, donor: Tensor) -> GSVAENoise:
        """The same patients with the pathology that the images ``donor`` ``[B, 1, H, W]`` show."""
        mean, _ = self.network.encode(donor)
        return replace(noise, pathology=mean[:, -1:], findings=None)

    @torch.no_grad()
    def predict(self, noise: GSVAENoise, parents: Values) -> Tensor:
        """The images ``[B, 1, H, W]`` in [-1, 1] of ``noise`` under ``parents``.

        Raises:
            NoDonorError: If a finding changes and the bank has no image with exactly the findings asked
                for; the message lists those it has. Also if there is no bank.
        """
        pathology = noise.pathology
        if noise.findings is not None:
            asked = findings_of(parents, self.finding_names, like=noise.findings)
            target = torch.where(asked.isnan(), noise.findings, asked)
            changed = ((target != noise.findings) & ~asked.isnan()).any(dim=1)
            if changed.any():
                pathology = pathology.clone()
                pathology[changed] = self._donated(noise, target, parents, changed)
        return self.network.decode(torch.cat([noise.identity, pathology], dim=1)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """Images ``[B, 1, H, W]`` in [-1, 1] of z drawn from the prior, one for each row of ``parents``."""
        if not parents:
            raise ValueError("sample needs at least one parent, from whose rows it takes the batch size.")
        count = len(next(iter(parents.values())))
        device = generator.device
        latent = torch.randn(count, *self.network.latent_shape, generator=generator, device=device)
        return self.network.decode(latent).clamp(-1.0, 1.0)

    def _donated(self, noise: GSVAENoise, target: Tensor, parents: Values, rows: Tensor) -> Tensor:
        if self.bank is None:
            raise ValueError(
                "A finding was changed, which takes a PathologyBank: build one from training batches with "
                "PathologyBank.build and give it to GSVAEMechanism."
            )
        return self.bank.pathology_for(
            target[rows],
            identity=noise.identity[rows],
            parents={name: value[rows] for name, value in parents.items()},
        )


def _observation_variance(network: GSVAENetwork, config: GSVAEConfig) -> float:
    channels, height, width = network.latent_shape
    pixels = network.image_size**2
    elements = channels * height * width if config.kl_reduction == "per_element" else 1
    return config.weights.kl * pixels / (2 * elements)
