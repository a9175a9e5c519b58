"""A `pathology_ldm` small enough for its laws to run in seconds: untrained parents, real latents."""

from dataclasses import replace

import torch

from counterray.bundle import write_bundle
from counterray.data.dataset import TensorInfo
from counterray.models.gsvae.stages import load as load_gsvae
from counterray.models.pathology_ldm.encoding import IDENTITY, PATHOLOGY, PRESENT, STATES
from counterray.models.pathology_ldm.stages import PathologyLDMConfig, PathologyLDMStage
from counterray.models.pathology_ldm.text import TowerText, open_text_encoder, weights_checksum
from counterray.models.predictors.image_text import load as load_text
from counterray.storage import resolve
from tests.small_gsvae import INFO, UNSUPERVISED, judge_bundles, make_batch, make_stage

CONTEXT = 16
TOWER = TowerText(context=CONTEXT)
PROMPTS = (
    "No acute finding.",
    "Severe cardiomegaly.",
    "Mild bilateral edema.",
    "Severe cardiomegaly. Mild bilateral edema.",
)
DENOISER = {"widths": (8, 16), "head_width": 8, "norm_groups": 4}


def parent_bundles(folder):
    """Untrained gsvae and image-text encoder by role."""
    torch.manual_seed(3)
    stage = make_stage(weights=UNSUPERVISED)
    gsvae = write_bundle(
        resolve(folder / "gsvae"),
        method="gsvae",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(stage.build({}, INFO)),
        data_fingerprint="small",
    )
    return {"gsvae": gsvae, "text": judge_bundles(folder)["pathology"]}


def encoded(parents, count=8, seed=0, config=TOWER):
    """A batch with latents and text states, and what a dataset would say of them."""
    batch = make_batch(count, seed)
    gsvae, text = load_gsvae(parents["gsvae"]), open_text_encoder(config, load_text(parents["text"]))
    with torch.no_grad():
        mean, _ = gsvae.encode(batch.image)
    prompts = [PROMPTS[index % 4] for index in range(count)]
    states = text.encode(prompts)
    tensors = {
        PATHOLOGY: mean[:, -1:],
        IDENTITY: mean[:, :-1],
        STATES: states.states,
        PRESENT: states.present.float(),
    }
    ids = tuple(f"image-{seed}-{index}" for index in range(count))
    batch = replace(batch, tensors=tensors, prompts=tuple(prompts), image_ids=ids, patient_ids=ids)
    infos = {
        name: TensorInfo(shape=tuple(value.shape[1:]), dtype="float16") for name, value in tensors.items()
    }
    pathology = tensors[PATHOLOGY]
    infos[PATHOLOGY] = TensorInfo(
        shape=tuple(pathology.shape[1:]),
        dtype="float16",
        mean=float(pathology.mean()),
        std=float(pathology.std()),
    )
    checksums = {role: bundle.checksum for role, bundle in parents.items()}
    encoding = {"text": config.model_dump(mode="json"), "text_weights": weights_checksum(text)}
    encoding["prompts"] = "refined_report"
    return batch, replace(INFO, tensors=infos, parents=checksums, encoding=encoding)


def make_ldm_stage(**settings):
    """A small stage that draws in few steps."""
    return PathologyLDMStage(
        PathologyLDMConfig(denoiser=DENOISER, sampler={"steps": 4, "guidance_scale": 2.0}, **settings)
    )


def ldm_bundle(folder, parents, *, trained=0, text=TOWER, **settings):
    """A bundle of the small stage after ``trained`` steps."""
    batch, info = encoded(parents, 32, config=text)
    stage = make_ldm_stage(**settings)
    torch.manual_seed(0)
    module = stage.build(parents, info)
    # diffusers starts the last convolution at random; a few steps make the prompts matter.
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for step in range(trained):
        optimizer.zero_grad()
        stage.loss(module, batch, step).total.backward()
        optimizer.step()
    return write_bundle(
        resolve(folder),
        method="pathology_ldm",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(module),
        data_fingerprint="small",
        parents=parents,
    )
