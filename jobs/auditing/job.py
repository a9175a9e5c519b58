"""``audit`` from classifiers to verdicts: what is missing is made, scored, judged; the rest is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterray.audits.errors import AuditError
from counterray.bundle import open_bundle
from counterray.data.dataset import open_dataset
from counterray.storage import Location, resolve
from counterray.training.run_folder import LOCK_FILE, RunLock
from jobs.auditing.candidates import Roll, open_candidates
from jobs.auditing.counting import count
from jobs.auditing.export import export_images
from jobs.auditing.judging import Jury
from jobs.auditing.making import Source
from jobs.auditing.planning import Plan, judge_bundles, make_plan
from jobs.auditing.reporting import PAGE_FILE, SALT_FILE, read_salt, report_of, write_report
from jobs.auditing.request import EXACT, AuditJobConfig
from jobs.auditing.result import AuditResult
from jobs.auditing.scoring import Scorer
from jobs.auditing.tables import check_tables
from jobs.auditing.work import Hands, Work, do_all
from jobs.generation.workers import workers

logger = logging.getLogger(__name__)

REQUEST_FILE = "request.json"
EXPORT_FOLDER = "export"


def audit(
    config: AuditJobConfig,
    *,
    classifiers: Sequence[str],
    generator: str,
    data: str,
    attributes: Sequence[str],
    judges: Sequence[str],
    out: str,
    cache: str | None = None,
) -> Mapping[str, Any]:
    """Audits a pool of classifiers; writes its report to ``out`` and returns the job's result.

    Args:
        config: Studies, tests and gates.
        classifiers: What is audited, each as `read_classifier` takes it; may be empty with ``export``.
        generator: Bundle of a generator, or ``exact`` on phantom data.
        data: Dataset.
        attributes: Attributes to intervene on.
        judges: Bundles that measure gates.
        out: Folder of the results.
        cache: Folder of images and scores, which audits may share; within ``out`` by default.

    Raises:
        AuditError: If nothing at all could be audited; the report says why.
        BundleError: If the generator's or a judge's bundle cannot be used.
        GenerationError: If the generator cannot be used.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    dataset, target = open_dataset(data), resolve(out)
    bundle = None if generator == EXACT else open_bundle(generator)
    source = Source(bundle, dataset, config, resolve(cache) if cache else target / "cache")
    source.open()
    jury = Jury(judge_bundles(judges, bundle), source).open()
    roll = open_candidates(classifiers, dataset, config)
    if not roll.candidates and not config.export:
        raise AuditError("No classifier can be audited. " + " ".join(roll.refused.values()))
    plan = make_plan(dataset, source, roll, attributes, config)
    for reason in plan.refused.values():
        logger.warning("not audited: %s", reason)
    _check_folder(target)
    with RunLock(target, work="audit"):
        (target / REQUEST_FILE).write_json({"job": "audit"})
        _fill_cache(plan, source, jury, roll, config)
        exported = _export(plan, source, target) if config.export and plan.attributes else 0
        result = count(plan, source, jury, roll, config)
        # Without a classifier there is nothing to report yet: who exports first audits later.
        if classifiers:
            write_report(target, report_of(result, plan, source, jury, config, salt=read_salt(target)))
    if not result.verdicts() and not exported:
        reasons = [reason for group in result.refused.values() for reason in group.values()]
        raise AuditError(f"Nothing could be audited. {' '.join(reasons)}")
    told = _told(result, target, reported=bool(classifiers), exported=exported)
    return {**told, "seconds": round(time.monotonic() - started, 1)}


def _told(result: AuditResult, target: Location, *, reported: bool, exported: int) -> dict[str, Any]:
    """The job's result: where things lie, verdicts, and all that has none."""
    return {
        "out": target.uri,
        "report": (target / PAGE_FILE).uri if reported else "",
        "verdicts": result.verdicts(),
        "refused": {kind: dict(reasons) for kind, reasons in result.refused.items()},
        "incomplete": result.incomplete(),
        "warnings": list(result.warnings),
        "export": (target / EXPORT_FOLDER).uri if exported else "",
        "exported": exported,
    }


def _check_folder(target: Location) -> None:
    there = set(target.files()) - {LOCK_FILE, SALT_FILE}
    if there and REQUEST_FILE not in there and not any(name.startswith("cache/") for name in there):
        raise AuditError(
            f"--out {target.uri} holds files, but none of a python -m jobs audit. Give an empty or a "
            "new folder."
        )


def _fill_cache(plan: Plan, source: Source, jury: Jury, roll: Roll, config: AuditJobConfig) -> None:
    """Makes, scores and judges what is not there yet; a classifier that fails is refused."""
    # Workers get their own: what is open here does not travel.
    fresh = replace(source)
    hands = Hands(fresh, Scorer(fresh, config.allowed_hosts), replace(jury, source=fresh))
    work = Work(source, jury, list(plan.attributes.values()), plan.observed, plan.validation)
    at_most = len(work.images()) + len(work.judgements()) + len(work.scores(roll.candidates))
    with workers(lambda: hands, config.resources, at_most=max(1, at_most)) as do:
        do_all(do, "counterfactuals of chunks", work.images())
        do_all(do, "chunks judged", work.judgements())
        check_tables(plan, source, roll)
        answers = do_all(do, "scores of chunks", work.scores(roll.candidates))
    errors = {answer["classifier"]: answer["error"] for answer in answers if answer["error"]}
    for one in [one for one in roll.candidates if one.name in errors]:
        left = sum(len(piece.chunks) for piece in work.scores([one]))
        total = work.chunks_of(one)
        roll.candidates.remove(one)
        roll.refused[one.name] = f"{errors[one.name]} ({total - left} of {total} chunks are scored and kept.)"


def _export(plan: Plan, source: Source, target: Location) -> int:
    findings = source.config.findings or source.dataset.manifest.finding_names
    images = export_images(target / EXPORT_FOLDER, source, plan.sets, findings=findings)
    logger.info("%d images are in %s", images, (target / EXPORT_FOLDER).uri)
    return images
