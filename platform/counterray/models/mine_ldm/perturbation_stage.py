"""`mine_perturbation`, the second stage of `mine_ldm`: T_ξ and its critic, trained against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.bundle import Bundle
from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.information import Critic, CriticConfig, donsker_varadhan, other_rows
from counterray.models.mine_ldm.perturbation import Perturbation, PerturbationConfig
from counterray.models.mine_ldm.vae import AttributeVAE
from counterray.models.mine_ldm.vae_stage import load_vae
from counterray.models.predictors.common import evaluating, repeatable, require_built
from counterray.training.stage import Export, Losses, StageConfig

CRITIC, PERTURBATION = "critic", "perturbation"
"""Names of the two parts that take turns."""


class MinePerturbationConfig(StageConfig):
    """Settings of the `mine_perturbation` stage; the defaults are the paper's."""

    stage: Literal["mine_perturbation"] = "mine_perturbation"
    """Name of the stage."""
    attributes: tuple[str, ...] = Field(default=("sex",), min_length=1)
    """Categorical attributes that the representation is to say little of, all together."""
    perturbation: PerturbationConfig = PerturbationConfig()
    """T_ξ."""
    critic: CriticConfig = CriticConfig()
    """The critic."""
    critic_steps: int = Field(default=5, ge=1)
    """Steps of the critic before each step of P."""


class Disentangler(nn.Module):
    """T_ξ and the critic that measures what T_ξ leaves of the attributes."""

    def __init__(self, perturbation: Perturbation, critic: Critic) -> None:
        super().__init__()
        self.perturbation, self.critic = perturbation, critic

    def forward(self, latent: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """S ``[B]`` of T(u) with its own attributes, and with another row's.

        Both terms read T(u); the published code's joint term reads u, its other term P(u).
        """
        moved = self.perturbation(latent)
        partner = other_rows(len(latent), latent.device)
        return self.critic(moved, one_hot), self.critic(moved, one_hot[partner])


@dataclass(frozen=True)
class _Built:
    data: DatasetInfo
    space: AttributeSpace
    vae: AttributeVAE


class MinePerturbationStage:
    """`Stage` for `Disentangler`: min over P of max over S of the Donsker–Varadhan bound of I(T(u); A).

    It implements `Alternating`: ``critic_steps`` steps of the critic, then one of P. Studies whose attributes
    are not all known take no part.

    Args:
        config: Settings.

    Reference: Ma et al., 2025, https://arxiv.org/abs/2504.19621, section 3.3. The published training cannot
        run (its P step is under ``no_grad``, its schedule 1:1, its attribute constant); this is the paper's.
    """

    name = "mine_perturbation"
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = ()
    needs_reports = False
    monitor = "information"
    direction = "min"
    inputs: Mapping[str, str] = {"vae": "mine_vae"}

    def __init__(self, config: MinePerturbationConfig) -> None:
        self.config = config
        self.frozen: dict[str, nn.Module] = {}
        self._built: _Built | None = None

    def parts(self, module: nn.Module) -> Mapping[str, Sequence[nn.Parameter]]:
        """The critic's and P's parameters."""
        network = _network(module)
        return {
            CRITIC: list(network.critic.parameters()),
            PERTURBATION: list(network.perturbation.parameters()),
        }

    def turn(self, step: int) -> str:
        """P at every ``critic_steps + 1``-th step (the 6th, 12th, … by default), else the critic."""
        return PERTURBATION if (step + 1) % (self.config.critic_steps + 1) == 0 else CRITIC

    def build(self, inputs: Mapping[str, Bundle], data: DatasetInfo) -> Disentangler:
        """Both networks; the autoencoder goes to ``frozen``.

        Raises:
            KeyError: If the autoencoder is missing.
            ValueError: If the dataset lacks an attribute, or the autoencoder is told some.
        """
        vae = plain_vae(inputs, "mine_perturbation")
        self.frozen = {"vae": vae}
        space = AttributeSpace.of(self.config.attributes, data)
        self._built = _Built(data, space, vae)
        channels, size, _ = vae.latent_shape
        return Disentangler(
            Perturbation(self.config.perturbation, channels=channels, size=size),
            Critic(self.config.critic, channels=channels, levels=sum(space.sizes)),
        )

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Losses:
        """The critic's objective or P's, by `turn`; ``information`` is the bound of this batch [nats].

        The other network gets no gradient at all, so that clipping sees one of them alone.
        """
        network, turn = _network(module), self.turn(step)
        latent, one_hot = self._pairs(batch)
        if len(latent) < 2:
            # Without pairs nothing is learnt, but the engine wants a gradient all the same.
            total = torch.stack([p.sum() for p in self.parts(module)[turn]]).sum() * 0.0
            return Losses(total, {"information": total.detach()})
        with _still(network.perturbation if turn == CRITIC else network.critic):
            joint, product = network(latent, one_hot)
        information = donsker_varadhan(joint, product)
        total = network.critic.objective(joint, product) if turn == CRITIC else information
        return Losses(total, {"information": information.detach()})

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Standardised latents and one-hot attributes of the studies whose attributes are all known."""
        built = require_built(self._built)
        codes = built.space.codes(batch.attributes, like=batch.image)
        known = ~codes.isnan().any(dim=1)
        with torch.no_grad():
            latent = built.vae.standardise(built.vae.encode(batch.image[known]).mean)
        return latent, built.space.one_hot(codes[known])

    def validate(self, module: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """What T_ξ leaves, by the critic that trained along with it.

        Returns:
            ``information``, the bound of I(T(u); A) over the validation images [nats] (lower is better, yet
            a weak critic sees little: measure it by one that is trained afterwards); ``relative_change``,
            the mean of ‖T(u) - u‖ / ‖u‖.
        """
        network = _network(module)
        scores: list[tuple[Tensor, Tensor]] = []
        changes: list[Tensor] = []
        with evaluating(module), repeatable():
            for batch in batches:
                latent, one_hot = self._pairs(batch)
                if len(latent) > 1:
                    scores.append(network(latent, one_hot))
                    step = (network.perturbation(latent) - latent).flatten(1).norm(dim=1)
                    changes.append(step / latent.flatten(1).norm(dim=1))
        if not scores:
            raise ValueError(
                "The validation split has no batch with two images whose "
                f"{', '.join(self.config.attributes)} are known; use a larger one or other attributes."
            )
        joint, product = (torch.cat(part) for part in zip(*scores, strict=True))
        return {
            "information": float(donsker_varadhan(joint, product)),
            "relative_change": float(torch.cat(changes).mean()),
        }

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """``reconstruction`` of u, and ``perturbed``, that of T(u)."""
        built, network = require_built(self._built), _network(module)
        image = batch.image[:16]
        with evaluating(module):
            latent = built.vae.standardise(built.vae.encode(image).mean)
            moved = network.perturbation(latent)
            images = {
                name: built.vae.decode(built.vae.restore(part))
                for name, part in (("reconstruction", latent), ("perturbed", moved))
            }
        return {"input": image, **images}

    def export(self, module: nn.Module) -> Export:
        """P alone with what `load_perturbation` rebuilds it from, and the critic beside it."""
        network, built = _network(module), require_built(self._built)
        channels, size, _ = built.vae.latent_shape
        return Export(
            tensors={
                "model": _state(network.perturbation),
                "critic": _state(network.critic),
            },
            metadata={
                "config": self.config.model_dump(mode="json"),
                "channels": channels,
                "size": size,
                **built.space.described(),
            },
            intended_use="Takes an attribute out of the latents of its own autoencoder, before diffusion.",
            limits="Measure what it leaves of the attribute by a critic that is trained afterwards.",
        )


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """A forward inside builds no gradient for the module's own weights, though through it to its input."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def plain_vae(inputs: Mapping[str, Bundle], stage: str) -> AttributeVAE:
    """The autoencoder among a stage's inputs.

    Raises:
        KeyError: If it is missing.
        ValueError: If it is told attributes: what the diffusion is to set would be set by the decoder.
    """
    if "vae" not in inputs:
        raise KeyError(f"{stage} needs the bundle of a 'mine_vae' as input 'vae'; train that stage first.")
    vae = load_vae(inputs["vae"])
    if vae.space is not None:
        raise ValueError(
            f"inputs.vae is told {', '.join(vae.space.levels)}: it is a generator of its own. {stage} needs "
            "one trained with attributes=[]."
        )
    return vae


def _network(module: nn.Module) -> Disentangler:
    assert isinstance(module, Disentangler)
    return module


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def load_perturbation(bundle: Bundle) -> Perturbation:
    """T_ξ of a `mine_perturbation` bundle, frozen and in evaluation mode.

    Raises:
        BundleError: If the bundle is another stage's.
    """
    perturbation = rebuild_perturbation(bundle.expect(MinePerturbationStage.name).metadata)
    perturbation.load_state_dict(bundle.tensors())
    return perturbation.eval().requires_grad_(False)


def rebuild_perturbation(metadata: Mapping[str, Any]) -> Perturbation:
    """T_ξ that a bundle's metadata describe, without its weights."""
    config = MinePerturbationConfig.model_validate(metadata["config"])
    return Perturbation(config.perturbation, channels=metadata["channels"], size=metadata["size"])
