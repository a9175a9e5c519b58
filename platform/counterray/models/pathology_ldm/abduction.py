"""What a counterfactual keeps of an observed image, and how it is read off the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from counterray.config import Config
from counterray.diffusion.sampling import SamplerConfig


class AbductionConfig(Config):
    """What is kept of an image beside its identity channels. The defaults are the paper's: nothing.

    With both kept and without guidance, a prompt that says what the patient's own says gives back the very
    image, up to the inversion's error; guidance makes what is said plainer. What no prompt speaks of
    (scanner, texture, place of what is not named) stays.
    """

    noise: Literal["fresh", "inverted"] = "fresh"
    """Where z_T comes from: ``fresh`` noise, or ``inverted``, the noise from which the patient's own prompt
    draws the observed z^n. Inversion takes a deterministic sampler: ``ddim`` with ``eta: 0``."""
    iterations: int = Field(default=1, ge=1)
    """Network calls a step of the inversion, see `counterray.diffusion.inversion.invert`."""
    residual: bool = False
    """Whether x - D(z), what the decoder leaves out of the image, is added to the counterfactual: the
    observation's noise under a Gaussian decoder of fixed variance (Pawlowski et al., 2020,
    https://arxiv.org/abs/2006.06485, section 3.2)."""

    def require(self, sampler: SamplerConfig) -> None:
        """Raises `ValueError` unless ``sampler`` can be run backwards where this asks for it."""
        if self.noise == "inverted" and (sampler.scheduler != "ddim" or sampler.stochastic):
            raise ValueError(
                f"abduction.noise = inverted needs a deterministic sampler, not {sampler.scheduler} with eta "
                f"{sampler.eta:g}; set sampler.scheduler to ddim and sampler.eta to 0, or abduction.noise to "
                "fresh."
            )


@dataclass(frozen=True)
class Abducted:
    """What images are made of.

    Attributes:
        identity: Identity channels ``[B, n - 1, h, w]``.
        pathology: The pathology channel ``[B, 1, h, w]`` that they show.
        residual: What decoding both leaves out ``[B, 1, H, W]``; ``None`` where that is not kept.
    """

    identity: Tensor
    pathology: Tensor
    residual: Tensor | None = None

    def select(self, rows: Tensor) -> Abducted:
        """The same of some rows."""
        residual = None if self.residual is None else self.residual[rows]
        return Abducted(self.identity[rows], self.pathology[rows], residual)
