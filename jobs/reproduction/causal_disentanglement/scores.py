"""Counterfactuals of one arm, scored by judges apart and against the truth: tables (a) and (b)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor
from counterray.evaluation.features import feature_judge
from counterray.evaluation.generator import Judges, evaluate_counterfactuals, shuffled_donors
from counterray.evaluation.judge import open_judge
from counterray.evaluation.metric import as_json
from counterray.evaluation.opening import exact_counterfactuals
from counterray.evaluation.settings import Settings
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.editing import NoiseRefinement, text_editor
from counterray.nn.text import TextStates
from jobs.reproduction.causal_disentanglement.bench import Bench, RareNoise, rare_findings, shows
from jobs.reproduction.causal_disentanglement.pictures import picture_rows

_LAW_IMAGES = 8
"""Images for the laws of repeated editing, which none of the tables shows."""


def score_arm(bench: Bench) -> dict[str, Any]:
    """Every metric of "this patient with what that patient's prompt says" on the test split.

    Returns:
        ``metrics`` by key, ``absent``: what could not be computed and why, ``studies``, ``optimised``: those
        of them whose noise was, ``pictures``.
    """
    bundles, scoring = bench.bundles(), bench.experiment.scoring
    test, training = bench.read("test", scoring.studies), bench.training()
    donors = shuffled_donors(test, seed=bench.seed)
    rare = rare_findings(bench.prevalence()) if bench.settings.optimise else ()
    optimised = {row for finding in rare for row in shows(donors, finding, 1).tolist()}
    evaluation = evaluate_counterfactuals(
        _editor(bench, training),
        test,
        donors,
        judges=Judges(
            classifier=open_judge(bundles["classifier"]),
            segmentor=open_judge(bundles["segmentor"]),
            features=feature_judge(bundles["classifier"]),
        ),
        exact=exact_counterfactuals(bench.dataset().manifest),
        training=training,
        validation=bench.read("validation", scoring.studies),
        prevalence=bench.prevalence(),
        settings=Settings(
            cycles=(1,),
            law_images=_LAW_IMAGES,
            minimum_positives=scoring.minimum_positives,
            seed=bench.seed,
        ),
    )
    return {
        "metrics": as_json(evaluation.metrics),
        "absent": dict(evaluation.absent),
        "studies": len(test),
        "optimised": len(optimised),
        "pictures": picture_rows(evaluation.counterfactuals),
    }


def _editor(bench: Bench, training: Batch) -> Editor:
    refine = None
    if bench.settings.optimise:
        rare = bench.rare_noise(training)
        model, refine = rare.model, rare_refinement(rare)
    else:
        model = bench.generator()
    return text_editor(model, source=bench.prompts, seed=bench.seed, refine=refine)


def rare_refinement(rare: RareNoise) -> NoiseRefinement:
    """Optimises the noise of those that are to show a rare finding; the rarest where there are several."""

    def refine(
        noise: Tensor, condition: TextStates, patients: Abducted, target: Batch, seeds: Tensor
    ) -> Tensor:
        noise, start = noise.clone(), noise
        for finding in reversed(rare.findings):
            rows = shows(target, finding, 1)
            if len(rows):
                noise[rows] = rare.noise(
                    finding, condition[rows], patients.select(rows), noise=start[rows], seeds=seeds[rows]
                )
        return noise

    return refine
