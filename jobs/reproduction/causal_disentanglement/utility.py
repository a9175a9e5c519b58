"""Downstream use of synthetic images of rare findings, the protocol of the paper's table 5: (d)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import pieces
from counterray.evaluation.downstream import downstream_utility
from counterray.evaluation.metric import as_json
from counterray.evaluation.opening import gather
from counterray.models.generator import PREFIX, Edit, edited_findings
from jobs.reproduction.causal_disentanglement.bench import Bench, rare_findings, shows
from jobs.reproduction.causal_disentanglement.rare import Asked


def measure_utility(bench: Bench) -> dict[str, Any]:
    """Trains the network on real images alone and with synthetic ones of the rare findings.

    Returns:
        ``findings``, ``synthetic`` (number of images), ``rare`` (what they show), ``test`` and ``positives``
        (test images, and those of each finding), ``scores``: arm to ``[findings, measures]``, and
        ``metrics`` by key, with intervals.
    """
    settings, training = bench.experiment.downstream, bench.training()
    findings = [name for name in settings.findings if name in training.finding_names]
    synthetic, test = rare_images(bench, training), bench.read("test")
    utility = downstream_utility(
        training,
        synthetic,
        bench.read("validation"),
        test,
        findings=findings,
        seeds=(bench.seed,),
        config=settings.network,
    )
    return {
        "findings": findings,
        "synthetic": len(synthetic),
        "real": len(training),
        "rare": list(rare_findings(bench.prevalence())),
        "test": len(test),
        "positives": {name: len(shows(test, name, 1)) for name in findings},
        "metrics": as_json(utility.metrics),
        "scores": {arm: values[0].tolist() for arm, values in utility.scores.items()},
    }


def rare_images(bench: Bench, training: Batch) -> Batch:
    """Training studies without a rare finding, edited to show it, with the findings asked for."""
    rare = bench.rare_noise(training)
    parts = []
    for finding in rare.findings:
        rows = shows(training, finding, 0)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(bench.seed))
        chosen = rows[order[: bench.experiment.downstream.synthetic]]
        edit = Edit(do={f"{PREFIX}{finding}": 1.0})
        for piece in pieces(len(chosen), 64):
            source = training.select(chosen[piece])
            asked = Asked(rare, finding, source, bench)
            shown = edited_findings(source, edit)
            parts.append(
                replace(
                    source,
                    image=asked.image(asked.noise()),
                    findings=shown.nan_to_num(),
                    finding_mask=~shown.isnan(),
                )
            )
    return gather(parts)
