"""Rare findings asked for with and without noise optimisation, and Algorithm 2 as printed beside it: (c)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig
from counterray.diffusion.targets import target_distance
from counterray.evaluation.auroc import auroc
from counterray.evaluation.counterfactuals import patients
from counterray.evaluation.diversity import feature_deviation, mean_pairwise_distance
from counterray.evaluation.features import extract_features, feature_judge
from counterray.evaluation.intervals import Floats, Rows
from counterray.evaluation.judge import open_judge
from counterray.evaluation.metric import Judge
from counterray.evaluation.two_sample import two_sample_bootstrap
from counterray.models.generator import PREFIX, Edit, image_seed
from counterray.models.pathology_ldm.prompts import PromptSource, edited_prompts, study_prompts
from counterray.nn.text import TextStates
from jobs.reproduction.causal_disentanglement.bench import Bench, RareNoise, shows

FIRST_ITERATIONS = 10
"""The first number of iterations that Algorithm 2 as printed is given; then twice as many."""


def rare_edits(bench: Bench) -> dict[str, Any]:
    """Measures ``do finding=1`` for each rare finding on test studies without it.

    Effectiveness is an AUROC of edited images against the same model's drawing of the same studies with what
    their own prompt says, so that what drawing leaves behind is on both sides; its ratio is to the AUROC of
    real images that the judge was not trained on. Diversity is a ratio to such real images that show the
    finding.

    Returns:
        ``order``: the findings, the rarest first. ``findings``: name to ``without`` and ``with`` (both
        ``auroc``, ``ratio``, its ``interval``, ``diversity``, ``deviation``, ``distance``, ``seconds`` a
        sample) and ``real``.
        ``printed``: of the rarest, see `against_printed`.
    """
    bundles, settings = bench.bundles(), bench.experiment.rare
    noise = bench.rare_noise(bench.training())
    test, real = bench.read("test"), bench.unseen_by(bundles["classifier"])
    judge, features = open_judge(bundles["classifier"]), feature_judge(bundles["classifier"])
    asked = {
        finding: Asked(noise, finding, test.select(shows(test, finding, 0)[: settings.studies]), bench)
        for finding in noise.findings
    }
    return {
        "order": list(noise.findings),
        "findings": {
            finding: _compared(each, judge, features, real, bench.prompts) for finding, each in asked.items()
        },
        "printed": against_printed(
            asked[noise.findings[0]], samples=settings.timed, times=settings.printed_time
        ),
    }


class Asked:
    """Studies that are to show a finding: what every way of drawing it starts from.

    Args:
        rare: Model and references.
        finding: The finding.
        source: B studies without it.
        bench: Seed and source of prompts.
    """

    def __init__(self, rare: RareNoise, finding: str, source: Batch, bench: Bench) -> None:
        self.rare, self.finding, self.source = rare, finding, source
        edit = Edit(do={f"{PREFIX}{finding}": 1.0})
        model = rare.model
        self.patients = model.abduct(source.image)
        self.condition: TextStates = model.prompts(edited_prompts(source, edit, bench.prompts))
        self.seeds = torch.tensor([image_seed(bench.seed, name) for name in source.image_ids])
        self.initial = model.initial(self.patients, study_prompts(source, bench.prompts), self.seeds)

    def first(self, count: int) -> Asked:
        """The first ``count`` of them."""
        part, rows = copy(self), torch.arange(min(count, len(self.source)))
        part.source, part.patients = self.source.select(rows), self.patients.select(rows)
        part.condition, part.seeds = self.condition[rows], self.seeds[rows]
        part.initial = self.initial[rows]
        return part

    def __len__(self) -> int:
        return len(self.source)

    def noise(self, config: NoiseOptimisationConfig | None = None) -> Tensor:
        """Optimised initial noise ``[B, 1, h, w]``."""
        return self.rare.noise(
            self.finding, self.condition, self.patients, noise=self.initial, seeds=self.seeds, config=config
        )

    @torch.no_grad()
    def image(self, noise: Tensor) -> Tensor:
        """The images ``[B, 1, H, W]`` that the sampler draws from ``noise``."""
        model = self.rare.model
        pathology = model.draw(self.condition, noise=noise, seeds=self.seeds)
        return model.render(self.patients, pathology)

    @torch.no_grad()
    def distance(self, image: Tensor) -> float:
        """Mean distance of the images' pathology features from their targets; 0 is best."""
        targets = self.rare.targets(self.finding, self.seeds)
        return float(target_distance(self.rare.model.features(image), targets).mean())


def _compared(
    asked: Asked, judge: Judge, features: Judge, real: Batch, prompts: PromptSource
) -> dict[str, Any]:
    finding, model = asked.finding, asked.rare.model
    column = judge.columns((finding,))[0]

    def score(image: Tensor) -> Tensor:
        return judge.scores(image)[:, column].double()

    present, absent = (shows(real, finding, value) for value in (1, 0))
    truth = Truth(score(real.image[present]), score(real.image[absent]), real, torch.cat([present, absent]))
    reference = _area(truth.positive, truth.negative)
    class_features = extract_features(features, real.image[present])
    with torch.no_grad():
        own = model.prompts(study_prompts(asked.source, prompts))
        redrawn = model.draw(own, noise=asked.initial, seeds=asked.seeds)
        unchanged = score(model.render(asked.patients, redrawn))
    outcome: dict[str, Any] = {
        "real": {"auroc": reference, "positives": len(present), "negatives": len(absent)},
        "judge": judge.label,
        "samples": len(asked),
    }
    for name in ("without", "with"):
        start = time.perf_counter()
        image = asked.image(asked.noise() if name == "with" else asked.initial)
        seconds = (time.perf_counter() - start) / len(asked)
        ours = extract_features(features, image)
        area = _area(score(image), unchanged)
        outcome[name] = {
            "auroc": area,
            "ratio": area / reference,
            "interval": _ratio_interval(score(image), unchanged, patients(asked.source), truth),
            "diversity": mean_pairwise_distance(ours) / mean_pairwise_distance(class_features),
            "deviation": feature_deviation(ours) / feature_deviation(class_features),
            "distance": asked.distance(image),
            "seconds": seconds,
        }
    return outcome


def against_printed(asked: Asked, *, samples: int, times: float) -> dict[str, Any]:
    """Times Algorithm 2 as printed until its images are as near to their targets as ours are.

    Both start from the same noise, have the same targets and the same step, and run on the same samples in
    one batch. Distances are those of the images that the sampler draws in the end. The printed algorithm is
    spared its rule of stopping, so that it gets every chance; what it reaches with that rule is also told.

    Args:
        asked: The studies.
        samples: Of them, how many.
        times: It is given this many times our seconds at least.

    Returns:
        ``finding``; ``samples``; ``ours`` and ``as_printed`` (with its rule of stopping), each ``seconds`` a
        sample and ``distance``; ``trace``: ``iterations``, ``seconds`` a sample, ``distance`` of each budget;
        ``reached``: the first that is as near, or ``None``; ``times``: its seconds, or the longest that it
        was given, over ours.
    """
    part = asked.first(samples)
    ours = part.rare.optimise
    printed = ours.model_copy(update={"mode": "algorithm_2"})
    part.noise(ours.model_copy(update={"iterations": 1}))  # the first call pays for memory
    goal = _timed(part, ours)
    trace: list[dict[str, float]] = []
    reached, budget = None, FIRST_ITERATIONS
    while reached is None and (not trace or trace[-1]["seconds"] < times * goal["seconds"]):
        entry = _timed(part, printed.model_copy(update={"iterations": budget, "patience": budget}))
        trace.append({"iterations": budget, **entry})
        if entry["distance"] <= goal["distance"]:
            reached = trace[-1]
        missing = times * goal["seconds"] / entry["seconds"]
        budget = math.ceil(budget * min(2.0, 1.1 * missing))
    most = int(trace[-1]["iterations"])
    return {
        "finding": part.finding,
        "samples": len(part),
        "start": part.distance(part.image(part.initial)),
        "ours": goal,
        "as_printed": _timed(part, printed.model_copy(update={"iterations": most})),
        "trace": trace,
        "reached": reached,
        "times": (reached or trace[-1])["seconds"] / goal["seconds"],
    }


def _timed(asked: Asked, config: NoiseOptimisationConfig) -> dict[str, float]:
    start = time.perf_counter()
    noise = asked.noise(config)
    seconds = (time.perf_counter() - start) / len(asked)
    return {"seconds": seconds, "distance": asked.distance(asked.image(noise))}


@dataclass(frozen=True)
class Truth:
    """Real images and what the judge says of them.

    Attributes:
        positive: Scores of those that show the finding.
        negative: Scores of those that do not.
        batch: Where they come from.
        rows: Of the batch, those that show it first.
    """

    positive: Tensor
    negative: Tensor
    batch: Batch
    rows: Tensor

    def patients(self) -> tuple[str, ...]:
        """Of each real image."""
        names = patients(self.batch)
        return tuple(names[row] for row in self.rows.tolist())


def _ratio_interval(edited: Tensor, unchanged: Tensor, who: Sequence[str], truth: Truth) -> dict[str, float]:
    """95 % interval of the ratio of AUROCs, over the patients of the edits and of the real images."""
    scores = torch.cat([truth.positive, truth.negative]).numpy()
    labels = np.arange(len(scores)) < len(truth.positive)

    def ratio(rows: Rows, real: Rows) -> Floats:
        reference = auroc(scores[real], labels[real])
        return np.array([_area(edited[rows], unchanged[rows]) / reference if reference else math.nan])

    [interval] = two_sample_bootstrap(ratio, who, truth.patients())
    return {"low": interval.low, "high": interval.high}


def _area(positive: Tensor, negative: Tensor) -> float:
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).bool()
    return auroc(torch.cat([positive, negative]).numpy(), labels.numpy())
