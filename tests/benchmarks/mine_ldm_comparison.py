"""Does T_ξ help? mine_ldm against latent diffusion without it (CLDM) and a conditional β-VAE, on the phantom.

    python tests/benchmarks/mine_ldm_comparison.py --out runs/mine_ldm --arm dldm --seed 0
    python tests/benchmarks/mine_ldm_comparison.py --out runs/mine_ldm --arm cldm --seed 0
    python tests/benchmarks/mine_ldm_comparison.py --out runs/mine_ldm --arm beta_vae --seed 0 --size 64

Each call trains one arm with the shipped settings in the plain loop and writes ``<arm>-<seed>.json``; a
finished run is not repeated, and what arms share (data, judges, autoencoder) is made once. The diffusions
are scored as the paper draws, and with settings of ours (`VARIANTS`). Every call prints the table of finished
runs.

Each test image is given another level of sex, and another of the scanner, drawn at random. Judges of other
patients and another seed than that of the losses read the attribute (effectiveness) and compare features
(FID); composition is what the null intervention changes; the error is against the phantom's exact
counterfactual. Information between latent and attributes, before and after T_ξ, is the Donsker–Varadhan bound
of a critic that is trained afterwards on the training latents, on the test latents.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import time
from pathlib import Path

import torch

from counterray import catalog
from counterray.bundle import open_bundle, write_bundle
from counterray.data.batching import fold_of
from counterray.data.dataset import DatasetInfo
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import make_batch, parents_of
from counterray.evaluation.frechet import frechet_distance
from counterray.evaluation.opening import open_generator
from counterray.models.generator import Edit
from counterray.models.mine_ldm.attributes import AttributeSpace
from counterray.models.mine_ldm.information import Critic, CriticConfig, donsker_varadhan, other_rows
from counterray.models.mine_ldm.perturbation_stage import load_perturbation
from counterray.models.mine_ldm.vae_stage import load_vae
from counterray.models.predictors import load_judge
from counterray.storage import resolve
from counterray.training.loop import train

TRAIN, TEST = 4000, 300
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "train"
ATTRIBUTES = ("scanner", "sex")
CRITIC_STEPS = 400
ARMS = ("dldm", "cldm", "beta_vae")
VARIANTS = {
    "": {},
    "guided": {"sampler": {"guidance_scale": 5.0}},
    "inverted": {
        "start": 1000,
        "sampler": {"steps": 25},
        "abduction": {"noise": "inverted", "residual": True},
    },
}
"""Name to how a diffusion generates: as the paper does, under guidance, and from the image's own noise at T,
with what the decoder leaves out of it added again."""
JUDGES = {"classifier": (), "demographic": ("steps=1000",)}
"""Judges that score, to their settings: at 32 px scanners are hard to tell after the shipped 300 steps."""
BETA = ("attributes=[sex, scanner]", "weights.kl=1.0")


def cached(path, make):
    """What ``make`` gives, kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(pickle.dumps(make()))
        temporary.replace(path)
    return pickle.loads(path.read_bytes())


def minibatches(batch, size, seed):
    """Shuffled epochs of ``batch``, as `training.loop.train` wants them."""
    generator = torch.Generator().manual_seed(seed)

    def epoch():
        order = torch.randperm(len(batch), generator=generator)
        return (batch.select(rows) for rows in order.split(size) if len(rows) == size)

    return epoch


def describe(batch):
    """What a stage may know of the phantom."""
    return DatasetInfo(
        image_size=batch.image.shape[-1],
        finding_names=batch.finding_names,
        vocabulary=VOCABULARY,
        mask_names=tuple(sorted(batch.masks)),
        reports=batch.reports,
    )


def trained(place, config, batch, seed, inputs=None, overrides=()):
    """The bundle of a shipped training, trained if there is none."""
    if not (place / "manifest.json").exists():
        start = time.perf_counter()
        stage, run = catalog.read_training(str(CONFIGS / f"{config}_phantom.yaml"), list(overrides))
        given = {role: inputs[role] for role in stage.inputs}
        module = train(
            stage,
            data=describe(batch),
            batches=minibatches(batch, run.batch_size, seed),
            steps=run.steps,
            optimizer=run.optimizer,
            inputs=given,
            seed=seed,
        )
        write_bundle(
            resolve(place),
            method=catalog.entry(stage.name).method,
            stage=stage.name,
            config=stage.config.model_dump(mode="json"),
            export=stage.export(module),
            data_fingerprint="phantom",
            parents=given,
        )
        sys.stderr.write(f"{place.name}: {run.steps} steps in {time.perf_counter() - start:.0f} s\n")
    return open_bundle(str(place))


def prepare(folder, size):
    """Data, the judge of the losses (fold a), the judges that score (fold b)."""
    data = cached(folder / "train.pickle", lambda: make_batch(TRAIN, size, seed=1))
    test = cached(folder / "test.pickle", lambda: make_batch(TEST, size, seed=2))
    first = torch.tensor([fold_of(patient) == "a" for patient in data.patient_ids])
    one, other = data.select(first.nonzero()[:, 0]), data.select((~first).nonzero()[:, 0])
    judge = trained(folder / "judge", "classifier", one, 11)
    scorers = {
        name: load_judge(trained(folder / name, name, other, 22, overrides=overrides))
        for name, overrides in JUDGES.items()
    }
    return data, test, judge, scorers


def generator_bundle(folder, arm, data, judge, seed):
    """The arm's generator, and the autoencoder and T_ξ that it stands on."""
    place = folder / f"seed-{seed}"
    if arm == "beta_vae":
        return trained(place / arm, "mine_vae", data, seed, {"judge": judge}, BETA), None, None
    inputs = {"vae": trained(place / "vae", "mine_vae", data, seed, {"judge": judge})}
    overrides = ["perturbed=false"]
    if arm == "dldm":
        inputs["perturbation"] = trained(place / "perturbation", "mine_perturbation", data, seed, inputs)
        overrides = []
    made = trained(place / arm, "mine_ldm", data, seed, inputs, overrides)
    return made, inputs["vae"], inputs.get("perturbation")


def other_levels(codes, size, seed):
    """For each code another one of ``size``, at random."""
    shift = torch.randint(1, size, (len(codes),), generator=torch.Generator().manual_seed(seed))
    return (codes.long() + shift) % size


def edited(generator, batch, name, codes):
    """Each image with its level of ``name`` in ``codes``, the same seed a row for whatever level."""
    image = torch.empty_like(batch.image)
    for code in codes.unique().tolist():
        rows = (codes == code).nonzero()[:, 0]
        for part in rows.split(50):
            image[part] = generator.edit(batch.select(part), Edit(do={name: code}), seeds=part + 1)
    return image


def exact(batch, name, codes):
    """The phantom's own counterfactuals, descendants of the attribute included."""
    observed = {**parents_of(batch), "image": batch.image}
    return exact_scm(batch.image.shape[-1]).counterfactual(observed, {name: codes.double()})["image"].float()


@torch.no_grad()
def score(generator, test, scorers):
    """All figures of one generator."""
    classifier, demographic = scorers["classifier"], scorers["demographic"]
    real = classifier.embedding(test.image)
    null = edited(generator, test, "sex", test.attributes["sex"])
    figures = {"composition": float((null - test.image).abs().mean()) / 2}
    made = []
    for name in ATTRIBUTES:
        observed = test.attributes[name]
        codes = other_levels(observed, len(VOCABULARY[name]), seed=3)
        image, truth = edited(generator, test, name, codes), exact(test, name, codes)
        made.append(image)
        for kind, shown in (("effectiveness", image), ("effectiveness_exact", truth)):
            figures[f"{kind}.{name}"] = _accuracy(demographic, shown, name, codes)
        figures[f"unchanged.{name}"] = _accuracy(demographic, null, name, observed)
        figures[f"error.{name}"] = float((image - truth).abs().mean()) / 2
        figures[f"error_of_no_edit.{name}"] = float((test.image - truth).abs().mean()) / 2
        change = classifier(image).sigmoid() - classifier(null).sigmoid()
        figures[f"off_target.{name}"] = float(change.abs().mean())
        figures[f"off_target_exact.{name}"] = float(
            (classifier(truth).sigmoid() - classifier(test.image).sigmoid()).abs().mean()
        )
    figures["fid"] = frechet_distance(classifier.embedding(torch.cat(made)), real)
    figures["fid_null"] = frechet_distance(classifier.embedding(null), real)
    return figures


def _accuracy(judge, image, name, codes):
    return float((judge(image)[name].argmax(1) == codes.long()).double().mean())


def information(latents, codes, space, seed):
    """Donsker–Varadhan bound on the second part by a critic that was trained on the first [nats]."""
    torch.manual_seed(seed)
    one_hot = [space.one_hot(part) for part in codes]
    critic = Critic(
        CriticConfig(widths=(32, 64, 128), blocks=1),
        channels=latents[0].shape[1],
        levels=sum(space.sizes),
    )
    optimizer = torch.optim.AdamW(critic.parameters(), lr=5e-4, weight_decay=0.05)
    for _ in range(CRITIC_STEPS):
        rows = torch.randint(len(latents[0]), (64,))
        latent, levels = latents[0][rows], one_hot[0][rows]
        loss = critic.objective(critic(latent, levels), critic(latent, levels[other_rows(64, rows.device)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
    critic.eval()
    with torch.no_grad():
        product = [
            critic(latents[1], one_hot[1][other_rows(len(latents[1]), torch.device("cpu"))]) for _ in range(5)
        ]
        return float(donsker_varadhan(critic(latents[1], one_hot[1]), torch.cat(product)))


def measured_information(vae_bundle, perturbation_bundle, data, test, seed):
    """Information with each attribute and with both, before and after T_ξ."""
    vae, move = load_vae(vae_bundle), load_perturbation(perturbation_bundle)
    with torch.no_grad():
        before = [
            torch.cat([vae.standardise(vae.encode(image).mean) for image in part.image.split(250)])
            for part in (data, test)
        ]
        after = [torch.cat([move(latent) for latent in part.split(250)]) for part in before]
    found = {}
    for names in (("scanner",), ("sex",), ATTRIBUTES):
        space = AttributeSpace({name: VOCABULARY[name] for name in names})
        codes = [space.codes(part.attributes, like=part.image) for part in (data, test)]
        for when, latents in (("before", before), ("after", after)):
            found[f"{when}.{'+'.join(names)}"] = information(latents, codes, space, seed)
    return found


def folder_of(arguments):
    """Where everything of one image size lies."""
    return arguments.out / f"{arguments.size}px"


def run(arguments):
    """Trains and scores one arm; returns its record."""
    folder = folder_of(arguments)
    data, test, judge, scorers = prepare(folder, arguments.size)
    start = time.perf_counter()
    made, vae, perturbation = generator_bundle(folder, arguments.arm, data, judge, arguments.seed)
    few, scored = test.select(torch.arange(8)), {}
    for name, settings in VARIANTS.items():
        if settings and arguments.arm == "beta_vae":
            continue
        generator = open_generator(made, settings=settings)
        scored[name] = score(generator, test, scorers)
        images = [edited(generator, few, "sex", torch.full((8,), float(code))) for code in (0, 1)]
        torch.save((few.image, *images), folder / f"{arguments.arm}-{arguments.seed}-{name}.pt")
    figures = {"variants": scored}
    if perturbation is not None:
        figures |= {
            f"information_{name}": value
            for name, value in measured_information(vae, perturbation, data, test, arguments.seed).items()
        }
    real = {
        f"judge_on_real.{name}": _accuracy(scorers["demographic"], test.image, name, test.attributes[name])
        for name in ATTRIBUTES
    }
    return {
        "arm": arguments.arm,
        "seed": arguments.seed,
        "size": arguments.size,
        "seconds": time.perf_counter() - start,
        **real,
        **figures,
    }


COLUMNS = (
    "effectiveness.sex",
    "effectiveness.scanner",
    "composition",
    "fid",
    "error.sex",
    "error.scanner",
    "off_target.sex",
    "information_before.sex",
    "information_after.sex",
)


def table(folder):
    """One line a finished run."""
    lines = [f"{'run':18s}" + "".join(f"{name:>24s}" for name in COLUMNS)]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for variant, figures in record["variants"].items():
            shown = {**figures, **{name: value for name, value in record.items() if not variant}}
            cells = [f"{shown[name]:24.4f}" if name in shown else " " * 23 + "-" for name in COLUMNS]
            lines.append(f"{path.stem + ' ' * bool(variant) + variant:18s}" + "".join(cells))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=ARMS, default="dldm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=32, help="edge of the images [px]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = folder_of(arguments) / f"{arguments.arm}-{arguments.seed}.json"
    if not result.exists():
        record = run(arguments)
        result.write_text(json.dumps(record, indent=2))
    sys.stdout.write(table(folder_of(arguments)) + "\n")


if __name__ == "__main__":
    main()
