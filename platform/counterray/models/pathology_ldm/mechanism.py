"""`pathology_ldm` as an image `Mechanism`: identity from the image, pathology from findings or words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from counterray.causal.mechanism import Values
from counterray.diffusion.likelihood import variational_bound
from counterray.models.gsvae.bank import findings_of
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.prompts import label_prompts


@dataclass(frozen=True)
class PathologyNoise:
    """What an image is made of, apart from its parents.

    Attributes:
        patients: Identity channels, the pathology channel that was observed, and what else is kept.
        pathology: The pathology channel ``[B, 1, h, w]`` that stands as long as nothing is changed.
        initial: z_T ``[B, 1, h, w]``, from which another pathology is drawn.
        findings: ``[B, F]`` that ``pathology`` shows, NaN where not known; ``None`` where it was drawn from
            words or taken from an image and stands whatever the parents say.
    """

    patients: Abducted
    pathology: Tensor
    initial: Tensor
    findings: Tensor | None


class PathologyLDMMechanism:
    """Implements `Mechanism`. Parents are read by the names ``finding.<name>``; all others are ignored.

    ``predict`` under unchanged findings decodes the observed pathology channel; under changed ones it draws a
    channel from the findings in words (`label_prompts`). What is kept of the image beside its identity
    channels is the model's `AbductionConfig`.

    Args:
        model: A trained model.
        finding_names: Findings in the order of the dataset.
        seed: Of fresh noise. Every row takes the same z_T, so that no row depends on those beside it.
    """

    def __init__(self, model: PathologyLDM, *, finding_names: Sequence[str], seed: int = 0) -> None:
        self.model, self.finding_names, self.seed = model, tuple(finding_names), seed

    @torch.no_grad()
    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """Variational bound of z^n's negative log-likelihood given the findings, ``[B]`` [nats].

        It bounds z^n's part of the image alone: the identity channels have no density here. See
        `variational_bound`.

        Raises:
            ValueError: If the model drifts: its noise has another mean than the bound's.
        """
        if self.model.drift is not None:
            raise ValueError("There is no bound of the likelihood under a drift; train with drift.value=0.")
        _, pathology = self.model.encode(value)
        clean = self.model.denoiser.standardise(pathology)
        condition = self.model.prompts(self._words(findings_of(parents, self.finding_names, like=clean)))
        return variational_bound(self.model.denoiser, self.model.schedule, clean, condition)

    @torch.no_grad()
    def abduct(self, value: Tensor, parents: Values) -> PathologyNoise:
        """Channels of ``value`` ``[B, 1, H, W]``, and the z_T of its counterfactuals."""
        patients = self.model.abduct(value)
        findings = findings_of(parents, self.finding_names, like=patients.pathology)
        seeds = torch.full((len(value),), self.seed)
        initial = self.model.initial(patients, self._words(findings), seeds)
        return PathologyNoise(patients, patients.pathology, initial, findings)

    @torch.no_grad()
    def with_prompts(self, noise: PathologyNoise, prompts: Sequence[str]) -> PathologyNoise:
        """The same patients with a pathology drawn from words; what it shows is then not known."""
        seeds = torch.full((len(prompts),), self.seed)
        pathology = self.model.draw(self.model.prompts(prompts), noise=noise.initial, seeds=seeds)
        return replace(noise, pathology=pathology, findings=None)

    @torch.no_grad()
    def with_pathology(self, noise: PathologyNoise, donor: Tensor) -> PathologyNoise:
        """The same patients with the pathology that the images ``donor`` ``[B, 1, H, W]`` show."""
        _, pathology = self.model.encode(donor)
        return replace(noise, pathology=pathology, findings=None)

    @torch.no_grad()
    def predict(self, noise: PathologyNoise, parents: Values) -> Tensor:
        """The images ``[B, 1, H, W]`` in [-1, 1] of ``noise`` under ``parents``."""
        pathology = noise.pathology
        if noise.findings is None:
            return self.model.render(noise.patients, pathology)
        asked = findings_of(parents, self.finding_names, like=noise.findings)
        target = torch.where(asked.isnan(), noise.findings, asked)
        changed = ((target != noise.findings) & ~asked.isnan()).any(dim=1)
        if changed.any():
            condition = self.model.prompts(self._words(target[changed]))
            seeds = torch.full((int(changed.sum()),), self.seed)
            pathology = pathology.clone()
            pathology[changed] = self.model.draw(condition, noise=noise.initial[changed], seeds=seeds)
        return self.model.render(noise.patients, pathology)

    @torch.no_grad()
    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """Images ``[B, 1, H, W]`` of identity channels from their prior, a standard normal, and findings.

        Raises:
            ValueError: If there is no parent, from whose rows the batch size is taken.
        """
        if not parents:
            raise ValueError("sample needs at least one parent, from whose rows it takes the batch size.")
        like = next(iter(parents.values()))
        channels, height, width = self.model.gsvae.latent_shape
        draw = torch.randn(len(like), channels, height, width, generator=generator, device=generator.device)
        seeds = torch.randint(2**62, (len(like),), generator=generator, device=generator.device).cpu()
        condition = self.model.prompts(self._words(findings_of(parents, self.finding_names, like=like)))
        pathology = self.model.draw(condition, noise=draw[:, -1:], seeds=seeds)
        return self.model.decode(draw[:, :-1], pathology)

    def _words(self, findings: Tensor) -> list[str]:
        return label_prompts(findings.nan_to_num(0.0), ~findings.isnan(), self.finding_names)
