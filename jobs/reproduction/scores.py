"""Counterfactuals of one arm, scored by judges apart and against the truth: tables (a) and (b)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor
from counterray.evaluation.features import feature_judge
from counterray.evaluation.generator import Judges, evaluate_counterfactuals, shuffled_donors
from counterray.evaluation.judge import open_judge
from counterray.evaluation.metric import as_json
from counterray.evaluation.opening import exact_counterfactuals, open_editor
from counterray.models.generator import image_seed
from counterray.models.pathology_ldm.prompts import PromptSource, study_prompts
from jobs.reproduction.bench import Bench, RareNoise, rare_findings, shows

_LAW_IMAGES = 8
"""Images for the laws of repeated editing, which none of the tables shows."""


def score_arm(bench: Bench) -> dict[str, Any]:
    """Every metric of "this patient with what that patient's prompt says" on the test split.

    Returns:
        ``metrics`` by key, ``absent``: what could not be computed and why, ``studies``.
    """
    bundles, scoring = bench.bundles(), bench.experiment.scoring
    test, training = bench.read("test", scoring.studies), bench.training()
    evaluation = evaluate_counterfactuals(
        _editor(bench, training),
        test,
        shuffled_donors(test, seed=bench.seed),
        judges=Judges(
            classifier=open_judge(bundles["classifier"]),
            segmentor=open_judge(bundles["segmentor"]),
            features=feature_judge(bundles["classifier"]),
        ),
        exact=exact_counterfactuals(bench.dataset().manifest),
        training=training,
        validation=bench.read("validation", scoring.studies),
        prevalence=bench.prevalence(),
        cycles=(1,),
        law_images=_LAW_IMAGES,
        minimum_positives=scoring.minimum_positives,
        seed=bench.seed,
    )
    return {
        "metrics": as_json(evaluation.metrics),
        "absent": dict(evaluation.absent),
        "studies": len(test),
    }


def _editor(bench: Bench, training: Batch) -> Editor:
    bundle = bench.bundles()["model"]
    if not bench.settings.optimise:
        return open_editor(bundle, prompts=bench.prompts, seed=bench.seed)
    rare = bench.experiment.rare
    noise = RareNoise(
        bundle,
        training,
        rare_findings(bench.prevalence()),
        references=rare.references,
        optimise=rare.optimise,
    )
    return optimised_editor(noise, source=bench.prompts, seed=bench.seed)


def optimised_editor(rare: RareNoise, *, source: PromptSource, seed: int) -> Editor:
    """The editor of `text_editor`, but with optimised noise where the donor shows a rare finding.

    A donor with several is drawn to references of the rarest.
    """
    model = rare.model

    @torch.no_grad()
    def edit(image: Tensor, patient: Batch, target: Batch) -> Tensor:
        identity, pathology = model.encode(image)
        if target is not patient:
            seeds = torch.tensor([image_seed(seed, name) for name in patient.image_ids])
            condition = model.prompts(study_prompts(target, source))
            noise = model.noise(seeds)
            for finding in reversed(rare.findings):
                rows = shows(target, finding, 1)
                if len(rows):
                    own = rare.noise(finding, condition[rows], identity[rows], seeds[rows])
                    noise[rows] = own.noise
            pathology = model.draw(condition, noise=noise, seeds=seeds)
        return model.decode(identity, pathology).to(image)

    return edit
