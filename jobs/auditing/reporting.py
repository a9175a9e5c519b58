"""From what an audit found to its report: group tests, CIT-LR, the flip gallery, and where it comes from."""

from __future__ import annotations

import secrets

from torch import Tensor

from counterray.audits.report import AuditReport
from counterray.audits.reporting.causes import CausalStatement
from counterray.audits.reporting.gallery import Example, Pick, most_affected
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.scores import CounterfactualScores
from counterray.bundle import code_version
from counterray.evaluation.report import Cell
from counterray.storage import Location
from jobs.auditing.judging import Jury
from jobs.auditing.making import Source
from jobs.auditing.planning import Plan
from jobs.auditing.representation import cit_lr_beside
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.result import AttributeAudit, AuditResult
from jobs.auditing.sets import SetChunk
from jobs.generation.selection import read_batch

AUDIT_FILE, PAGE_FILE, SUMMARY_FILE = "audit.json", "report.html", "summary.md"
"""The report's numbers, its page, and what goes into a model card."""

SALT_FILE = "salt"
"""Key of the patients' codes in the report: whoever has it and the identifiers can undo them."""

EXAMPLES = 8
"""Patients in the flip gallery of an attribute."""


def read_salt(target: Location) -> bytes:
    """The key of an audit's patient codes, drawn when it is first asked for."""
    place = target / SALT_FILE
    if not place.is_file():
        place.write_bytes(secrets.token_bytes(32))
    return place.read_bytes()


def write_report(target: Location, report: AuditReport) -> None:
    """Writes page, summary and numbers; the numbers last, since with them an audit is done."""
    (target / PAGE_FILE).write_bytes(report.html().encode())
    (target / SUMMARY_FILE).write_bytes(report.markdown().encode())
    (target / AUDIT_FILE).write_json(report.as_json())


def report_of(
    result: AuditResult, plan: Plan, source: Source, jury: Jury, config: AuditJobConfig, *, salt: bytes
) -> AuditReport:
    """The report of an audit.

    Args:
        result: What was found.
        plan: What was asked.
        source: Where the images are.
        jury: Who measured the gates.
        config: Of the audit.
        salt: From `read_salt`.
    """
    attributes = ", ".join(result.verdicts()) or "no attribute"
    return AuditReport(
        title=f"Counterfactual audit: {attributes}",
        results=[_results(one, source, config, salt) for one in result.attributes.values()],
        doses=list(result.doses.values()),
        refused=result.refused,
        warnings=result.warnings,
        facts=_facts(source, plan),
        bundles=_bundles(source, jury, result),
        config=config.model_dump(mode="json", exclude={"audit"}),
    )


def _results(one: AttributeAudit, source: Source, config: AuditJobConfig, salt: bytes) -> AttributeResults:
    refused = one.scores.problems()
    usable = one.scores.select([row for row in range(len(one.scores.targets)) if row not in refused])
    causes = config.causes
    return AttributeResults.of(
        one.scores,
        [one.effect],
        cit_lr=cit_lr_beside(
            usable, source.open(), one.images, config.audit, kept=one.kept, cache=source.cache
        ),
        causes=None
        if causes is None
        else CausalStatement(parents=causes.parents, legitimate=causes.legitimate),
        examples=[
            _example(usable, pick, one, source, salt)
            for pick in most_affected(usable, count=EXAMPLES, salt=salt)
        ],
    )


def _example(
    scores: CounterfactualScores, pick: Pick, one: AttributeAudit, source: Source, salt: bytes
) -> Example:
    number = one.images.studies["number"][one.kept[pick.individual]].as_py()
    [chunk] = [each for each in one.images.chunks if number in each.studies["number"].to_pylist()]
    row = chunk.studies["number"].to_pylist().index(number)
    shown = {view: images[row] for view, images in source.read(chunk).items()}
    own = int(scores.own[pick.individual])
    return Example.of(
        scores,
        pick,
        salt=salt,
        observed=_observed(source, chunk, row),
        repainted=shown[f"level{own}"],
        counterfactual=shown[f"level{pick.level}"],
    )


def _observed(source: Source, chunk: SetChunk, row: int) -> Tensor:
    return read_batch(source.dataset, chunk.studies.slice(row, 1)).image[0]


def _facts(source: Source, plan: Plan) -> dict[str, Cell]:
    manifest, config, said = source.dataset.manifest, source.config, source.identity()
    made = said["generator"]
    return {
        "Code version": code_version(),
        "Data": f"{manifest.source}, split {config.split}, fold {config.fold}",
        "Data fingerprint": manifest.fingerprint,
        "Studies": len(plan.observed.studies),
        "Generator": f"{made['stage']}, {config.effect} effect",
        "Null interventions": source.nulls(),
        "Seed of the noise": config.seed,
        "Seed of resamples and permutations": config.audit.seed,
        "Device": said["device"],
    }


def _bundles(source: Source, jury: Jury, result: AuditResult) -> dict[str, str]:
    """Role to checksum: classifiers, the generator, what it was made of, and the judges."""
    found = {f"classifier {one.name} ({one.config.kind})": one.fingerprint for one in result.candidates}
    if source.bundle is not None:
        found["generator"] = source.bundle.checksum
        parents = source.bundle.manifest["parents"]
        found |= {f"generator's {role}": parent["checksum"] for role, parent in parents.items()}
    return found | {f"judge {stage}": bundle.checksum for stage, bundle in jury.bundles.items()}
