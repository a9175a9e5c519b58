"""What a counterfactual keeps of an observed image beside the latents that are drawn anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from counterray.config import Config
from counterray.diffusion.sampling import SamplerConfig


class AbductionConfig(Config):
    """What is kept of an observed image. The defaults are the published ones: nothing.

    With both kept and without guidance, a condition that says what the patient's own says gives back the very
    image, up to the inversion's error; guidance makes what is said plainer. What no condition speaks of
    (texture, place of what is not named) stays.
    """

    noise: Literal["fresh", "inverted"] = "fresh"
    """Where the noise that is drawn from comes from: ``fresh``, or ``inverted``, the noise from which the
    patient's own condition draws the observed latents. Inversion takes a deterministic sampler: ``ddim``
    with ``eta: 0``."""
    iterations: int = Field(default=1, ge=1)
    """Network calls a step of the inversion, see `counterray.diffusion.inversion.invert`."""
    residual: bool = False
    """Whether x - D(z), what the decoder leaves out of the image, is added to the counterfactual: the
    observation's noise under a Gaussian decoder of fixed variance (Pawlowski et al., 2020,
    https://arxiv.org/abs/2006.06485, section 3.2). Of `mine_ldm` D stands for all of generation under the
    observed attributes, so that null interventions give back the very image."""

    def require(self, sampler: SamplerConfig) -> None:
        """Raises `ValueError` unless ``sampler`` can be run backwards where this asks for it."""
        if self.noise == "inverted" and (sampler.scheduler != "ddim" or sampler.stochastic):
            raise ValueError(
                f"abduction.noise = inverted needs a deterministic sampler, not {sampler.scheduler} with eta "
                f"{sampler.eta:g}; set sampler.scheduler to ddim and sampler.eta to 0, or abduction.noise to "
                "fresh."
            )
