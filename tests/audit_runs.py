"""Audits through the job's own functions, in this process and without Ray."""

import torch

from counterray.bundle import write_bundle
from counterray.config import validate
from counterray.storage import resolve
from jobs.auditing.candidates import open_candidates
from jobs.auditing.counting import count
from jobs.auditing.judging import Jury
from jobs.auditing.making import Source
from jobs.auditing.planning import judge_bundles, make_plan
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.scoring import Scorer
from jobs.auditing.work import Hands, Work

BRIGHT, NAN, CONSTANT, BIRDS, FAILING = (
    f"tests.audited_functions:{name}"
    for name in ("brightness", "not_a_number", "constant", "of_birds", "failing")
)
TINY = {"widths": (8,), "blocks": (1,)}


def config(**settings):
    audit = {"minimum_patients": 4, "resamples": 200, "permutations": 199, **settings.pop("audit", {})}
    return validate(AuditJobConfig, {"chunk_studies": 16, "audit": audit, **settings})


def source_of(dataset, folder, settings):
    return Source(None, dataset, settings, resolve(folder) / "cache")


def planned(dataset, folder, attributes=("sex",), classifiers=(BRIGHT,), **settings):
    chosen = config(**settings)
    source = source_of(dataset, folder, chosen)
    roll = open_candidates(classifiers, dataset, chosen)
    return make_plan(dataset, source, roll, attributes, chosen), source, roll, chosen


def run(plan, source, roll, chosen, judges=()):
    """The whole audit in this process; returns its result and what was done."""
    jury = Jury(judge_bundles(judges, None), source)
    work = Work(source, jury, list(plan.attributes.values()), plan.observed, plan.validation)
    hands = Hands(source, Scorer(source, ()), jury)
    made = [hands(piece) for piece in work.images()]
    judged = [hands(piece) for piece in work.judgements()]
    scored = [hands(piece) for piece in work.scores(roll.candidates)]
    return count(plan, source, jury, roll, chosen), (made, judged, scored)


def bundle_at(folder, dataset, stage, **training):
    torch.manual_seed(0)
    return write_bundle(
        resolve(folder),
        method="predictors",
        stage=stage.name,
        config={**stage.config.model_dump(mode="json"), **training},
        export=stage.export(stage.build({}, dataset.info())),
        data_fingerprint=dataset.manifest.fingerprint,
    )
