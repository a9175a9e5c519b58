"""A `mine_ldm` small enough for its laws to run in seconds, on images whose right edge shows the sex."""

import torch

from counterray.bundle import write_bundle
from counterray.models.mine_ldm.perturbation_stage import MinePerturbationConfig, MinePerturbationStage
from counterray.models.mine_ldm.stages import MineLDMConfig, MineLDMStage
from counterray.models.mine_ldm.vae_stage import MineVAEConfig, MineVAEStage
from counterray.storage import resolve
from counterray.training.loop import train
from tests.predictor_toys import DATA, batch

ATTRIBUTES = ("scanner", "sex")
NETWORK = {"latent_channels": 4, "widths": (8, 16), "strides": (2, 2)}
WEIGHTS = {"perceptual": 0.0}
PERTURBATION = {"widths": (8, 16)}
CRITIC = {"widths": (8, 16), "blocks": 1}
DENOISER = {"widths": (8, 16), "head_width": 8, "norm_groups": 4}


def vae_stage(**settings):
    return MineVAEStage(MineVAEConfig(**{"network": NETWORK, "weights": WEIGHTS, **settings}))


def perturbation_stage(**settings):
    given = {"attributes": ATTRIBUTES, "perturbation": PERTURBATION, "critic": CRITIC, **settings}
    return MinePerturbationStage(MinePerturbationConfig(**given))


def ldm_stage(**settings):
    """It draws in two network calls."""
    given = {"attributes": ATTRIBUTES, "denoiser": DENOISER, "token_width": 8, "validation_draws": 8}
    sampler = {"steps": 10, "guidance_scale": 1.0}
    return MineLDMStage(MineLDMConfig(**{**given, "sampler": sampler, **settings}))


def saved(folder, stage, module, parents=None):
    """The bundle of a module."""
    return write_bundle(
        resolve(folder),
        method="mine_ldm",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(module),
        data_fingerprint=DATA.fingerprint,
        parents=parents or {},
    )


def trained(stage, inputs=None, *, steps=2, seed=0, data=DATA):
    """The stage's module after a few steps."""
    return train(stage, data=data, batches=lambda: [batch(8, 0)], steps=steps, inputs=inputs, seed=seed)


def chain(folder, *, steps=2, vae=None, perturbation=None, ldm=None):
    """Bundles of the three stages by role: ``vae``, ``perturbation``, ``ldm``."""
    bundles = {}
    for role, stage in (
        ("vae", vae_stage(**(vae or {}))),
        ("perturbation", perturbation_stage(**(perturbation or {}))),
        ("ldm", ldm_stage(**(ldm or {}))),
    ):
        inputs = {name: bundles[name] for name in stage.inputs}
        bundles[role] = saved(folder / role, stage, trained(stage, inputs, steps=steps), inputs)
    return bundles


def conditional_bundle(folder, *, steps=2):
    """A β-VAE."""
    stage = vae_stage(attributes=ATTRIBUTES, weights={"perceptual": 0.0, "kl": 1.0})
    return saved(folder, stage, trained(stage, steps=steps))


def codes_of(data):
    """Codes of a batch ``[B, m]``."""
    return torch.stack([data.attributes[name] for name in ATTRIBUTES], dim=1)
