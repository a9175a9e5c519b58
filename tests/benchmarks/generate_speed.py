"""``generate`` against a plain diffusers loop: same weights, same steps, same cores, one run.

    python -m tests.benchmarks.generate_speed [--model BUNDLE --data DATASET] [--studies 50] [--samples 4]

The loop is what one writes with diffusers alone: for each edit, encode the image and the prompt, run the UNet
under guidance through the stock DDIM scheduler, decode, save a PNG; it has all cores. Printed: images/s of
the generator and of the loop one image at a time (goal: ratio >= 1), images/s of the whole job and of the
loop, both from opening the bundle to the last file (goal: >= 2, from batches and abductions that are kept),
and how far their images are apart. Both draw from fresh noise and keep no residual, as the loop's samples of
one image would else be the same. Without --model a bundle of the shipped sizes is made, untrained: speed
does not depend on the weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from counterray import catalog
from counterray.bundle import Bundle, open_bundle, write_bundle
from counterray.config import validate
from counterray.data.batching import read_batches, read_reports
from counterray.data.dataset import Dataset, DatasetInfo, TensorInfo, open_dataset
from counterray.data.ingest import IngestConfig, ingest
from counterray.data.study import Batch
from counterray.evaluation.opening import open_generator
from counterray.models.generator import Edit, image_seed
from counterray.models.pathology_ldm.encoding import IDENTITY, PATHOLOGY, PRESENT, STATES
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.stages import load
from counterray.models.pathology_ldm.text import TowerTextEncoder, weights_checksum
from counterray.models.predictors.image_text import load as load_text
from counterray.storage import resolve
from jobs.common import connect
from jobs.generation.job import generate
from jobs.generation.request import GenerateConfig

CORES = os.cpu_count() or 1
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "train"
PROMPT = "Moderate left pleural effusion."
FRESH = {"abduction": {"noise": "fresh", "residual": False}}


@torch.no_grad()
def plain_edit(model: PathologyLDM, image: Tensor, prompt: str, seed: int) -> Tensor:
    """One edit as a loop over diffusers' UNet and scheduler, ``[1, 1, H, W]``."""
    schedule, network = model.schedule, model.denoiser
    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.timesteps,
        beta_schedule=schedule.beta_schedule,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        prediction_type=schedule.prediction,
        timestep_spacing=schedule.timestep_spacing,
        clip_sample=False,
    )
    scheduler.set_timesteps(model.sampler.steps)
    mean, _ = model.gsvae.encode(image)
    text = model.text.encode(["", prompt])
    noise = torch.randn(1, network.size, network.size, generator=torch.Generator().manual_seed(seed))
    latents = noise[None]
    for timestep in scheduler.timesteps:
        output = network.denoiser.unet(
            latents.repeat(2, 1, 1, 1), timestep, text.states, encoder_attention_mask=text.present
        ).sample
        nothing, asked = output.chunk(2)
        guided = nothing + model.sampler.guidance_scale * (asked - nothing)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    pathology = latents * network.std + network.mean
    made = model.gsvae.decode(torch.cat([mean[:, :-1], pathology], dim=1)).clamp(-1, 1)
    return torch.as_tensor(made)


def one_by_one(bundle: Bundle, batch: Batch, rounds: int) -> tuple[float, float, float]:
    """Images/s of the generator and of the loop at batch 1 (medians), and how far their images are apart."""
    generator, model = open_generator(bundle, settings=FRESH), load(bundle)
    ours: list[float] = []
    theirs: list[float] = []
    apart = 0.0
    for row in range(min(rounds, len(batch))):
        part, seeds = batch.select(torch.tensor([row])), torch.tensor([row])
        started = time.perf_counter()
        made = generator.edit(part, Edit(prompt=PROMPT), seeds=seeds)
        between = time.perf_counter()
        plain = plain_edit(model, part.image, PROMPT, row)
        ours.append(between - started)
        theirs.append(time.perf_counter() - between)
        apart = max(apart, float((made - plain).abs().max()))
    return 1 / float(np.median(ours[1:])), 1 / float(np.median(theirs[1:])), apart


def plain_job(model: str, batch: Batch, samples: int, out: Path) -> float:
    """Images/s of the loop from opening the bundle to the last file."""
    started = time.perf_counter()
    network = load(open_bundle(model))
    out.mkdir()
    for row, image_id in enumerate(batch.image_ids):
        for sample in range(samples):
            made = plain_edit(network, batch.image[row : row + 1], PROMPT, image_seed(0, image_id, sample))
            grey = ((made[0, 0] + 1) * 127.5).round().byte().numpy()
            Image.fromarray(grey).save(out / f"{row}-{sample}.png")
    return samples * len(batch) / (time.perf_counter() - started)


def our_job(model: str, data: str, studies: int, samples: int, out: Path) -> float:
    """Images/s of ``generate``, which Ray is up for already."""
    settings: dict[str, Any] = {"studies": studies, "samples": samples, "prompt": PROMPT, "generator": FRESH}
    started = time.perf_counter()
    made = generate(validate(GenerateConfig, settings), model=model, data=data, out=str(out))
    return int(made["images"]) / (time.perf_counter() - started)


def farthest(batch: Batch, samples: int, ours: Path, theirs: Path) -> int:
    """Largest difference between a file of the job and the loop's [grey values of 255]."""
    most = 0
    files = sorted(ours.glob("images/*/*.png"))
    pairs = [(row, sample) for row in range(len(batch)) for sample in range(samples)]
    for file, (row, sample) in zip(files, pairs, strict=True):
        with Image.open(file) as made, Image.open(theirs / f"{row}-{sample}.png") as plain:
            most = max(most, int(np.abs(np.asarray(made, int) - np.asarray(plain, int)).max()))
    return most


def untrained(dataset: Dataset, folder: Path) -> Bundle:
    """A `pathology_ldm` of the shipped sizes with weights as they start."""
    torch.manual_seed(0)
    info = dataset.info(read_reports(dataset, "train", limit=2000))
    parents = {
        "gsvae": _bundle("gsvae", info, folder, ["weights.identity=0", "weights.pathology=0"]),
        "text": _bundle("image_text_encoder", info, folder, []),
    }
    latents = catalog.load_model(parents["gsvae"]).latent_shape
    context = 32
    text = TowerTextEncoder(load_text(parents["text"]), context=context)
    shapes = {
        PATHOLOGY: (1, *latents[1:]),
        IDENTITY: (latents[0] - 1, *latents[1:]),
        STATES: (context, text.width),
        PRESENT: (context,),
    }
    tensors = {name: TensorInfo(shape=shape, dtype="float16") for name, shape in shapes.items()}
    checksums = {role: parent.checksum for role, parent in parents.items()}
    encoding = {"text": {"kind": "tower", "context": context}, "text_weights": weights_checksum(text)}
    encoding["prompts"] = "refined_report"
    known = replace(info, tensors=tensors, parents=checksums, encoding=encoding)
    return _bundle("pathology_ldm", known, folder, [], parents)


def _bundle(
    stage: str,
    info: DatasetInfo,
    folder: Path,
    overrides: Sequence[str],
    parents: dict[str, Bundle] | None = None,
) -> Bundle:
    made, config = catalog.read_training(CONFIGS / f"{stage}_phantom.yaml", overrides)
    return write_bundle(
        resolve(folder / stage),
        method=catalog.entry(stage).method,
        stage=stage,
        config=config.model_dump(mode="json"),
        export=made.export(made.build(parents or {}, info)),
        data_fingerprint=info.fingerprint,
        parents=parents,
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data go together: the dataset whose studies the bundle can edit")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        connect(None)
        model, data = arguments.model, arguments.data
        if model is None:
            data = str(folder / "data")
            source = {"name": "phantom", "studies": 20 * arguments.studies}
            ingest(validate(IngestConfig, {"source": source, "image_size": arguments.image_size}), None, data)
            model = untrained(open_dataset(data), folder / "bundles").location.uri
        torch.set_num_threads(CORES)
        dataset = open_dataset(data)
        batch = next(read_batches(dataset, "test", batch_size=arguments.studies, reports=True))
        ours, theirs, apart = one_by_one(open_bundle(model), batch, arguments.rounds)
        sys.stdout.write(
            f"one at a time: generator {ours:.2f}/s, loop {theirs:.2f}/s, ratio {ours / theirs:.2f}, "
            f"largest difference {apart:.1e} of 2\n"
        )
        job = our_job(model, data, len(batch), arguments.samples, folder / "ours")
        loop = plain_job(model, batch, arguments.samples, folder / "theirs")
        sys.stdout.write(
            f"{len(batch) * arguments.samples} edits end to end: generate {job:.2f}/s, loop {loop:.2f}/s, "
            f"ratio {job / loop:.2f}, largest difference "
            f"{farthest(batch, arguments.samples, folder / 'ours', folder / 'theirs')} of 255\n"
        )


if __name__ == "__main__":
    main()
