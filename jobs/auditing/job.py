"""``audit`` from classifiers to verdicts: what is missing is made, scored and judged; what is there is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.errors import AuditError
from counterray.audits.settings import AuditConfig
from counterray.bundle import Bundle, BundleError, code_version, open_bundle
from counterray.data.dataset import Dataset, open_dataset
from counterray.models.generator import Edit, EditError
from counterray.storage import Location, StorageError, resolve
from counterray.training.run_folder import LOCK_FILE, RunLock
from jobs.ancestry import ancestors, require_apart, trained_on
from jobs.auditing.assembly import Thresholds, assemble, associational, choose_thresholds
from jobs.auditing.candidates import Roll, open_candidates
from jobs.auditing.export import export_images
from jobs.auditing.judging import JUDGES, Jury, gate_readings, read_judged
from jobs.auditing.making import Source
from jobs.auditing.request import EXACT, AuditJobConfig
from jobs.auditing.result import AUDIT_FILE, AttributeAudit, AuditResult
from jobs.auditing.scoring import Scorer, ScoreWork
from jobs.auditing.sets import ImageSet, counterfactual_set, observed_set, study_table
from jobs.auditing.work import Hands, Work, do_all
from jobs.generation.workers import workers

logger = logging.getLogger(__name__)

REQUEST_FILE = "request.json"


@dataclass
class Plan:
    """What there is to ask about.

    Attributes:
        observed: The audited studies' own images.
        attributes: Attribute to its counterfactuals.
        validation: Images by which thresholds are chosen, if any are.
        refused: Attribute to why it is not audited.
    """

    observed: ImageSet
    attributes: dict[str, ImageSet] = field(default_factory=dict)
    validation: ImageSet | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def sets(self) -> list[ImageSet]:
        """All of them."""
        return [self.observed, *self.attributes.values(), *([self.validation] if self.validation else [])]


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
    """Audits a pool of classifiers; writes ``audit.json`` to ``out`` and returns the job's result.

    Args:
        config: Studies, tests and gates.
        classifiers: What is audited, each as `read_classifier` takes it.
        generator: Bundle of a generator, or ``exact`` on phantom data.
        data: Dataset.
        attributes: Attributes to intervene on.
        judges: Bundles that measure gates.
        out: Folder of the results.
        cache: Folder of images and scores, which audits may share; within ``out`` by default.

    Raises:
        AuditError: If nothing at all could be audited; ``audit.json`` says why.
        BundleError: If the generator's or a judge's bundle cannot be used.
        GenerationError: If the generator cannot be used.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    dataset, target = open_dataset(data), resolve(out)
    bundle = None if generator == EXACT else open_bundle(generator)
    source = Source(bundle, dataset, config, resolve(cache) if cache else target / "cache")
    source.open()
    jury = Jury(_judge_bundles(judges, bundle), source).open()
    roll = open_candidates(classifiers, dataset, config)
    if not roll.candidates and not config.export:
        raise AuditError("No classifier can be audited. " + " ".join(roll.refused.values()))
    plan = _plan(dataset, source, roll, attributes, config)
    _check_folder(target)
    with RunLock(target, work="audit"):
        (target / REQUEST_FILE).write_json({"job": "audit"})
        _fill_cache(plan, source, jury, roll, config)
        exported = _export(plan, source, target, dataset) if config.export else 0
        result = _counted(plan, source, jury, roll, config)
        (target / AUDIT_FILE).write_json(result.as_json())
    if not result.attributes and not config.export:
        reasons = [reason for group in result.refused.values() for reason in group.values()]
        raise AuditError(f"Nothing could be audited. {' '.join(reasons)}")
    return {
        "out": target.uri,
        "verdicts": {name: one.effect.verdicts() for name, one in result.attributes.items()},
        "refused": {kind: dict(reasons) for kind, reasons in result.refused.items()},
        "warnings": list(result.warnings),
        "exported": exported,
        "seconds": round(time.monotonic() - started, 1),
    }


def _judge_bundles(judges: Sequence[str], generator: Bundle | None) -> dict[str, Bundle]:
    """Stage to bundle; each in a role of its own and apart from the generator's losses."""
    found: dict[str, Bundle] = {}
    for uri in judges:
        judge = open_bundle(uri)
        if judge.stage not in JUDGES or judge.stage in found:
            raise BundleError(
                f"--judge {uri} is of stage {judge.stage}. One judge of each of these can measure gates: "
                f"{', '.join(JUDGES)}."
            )
        found[judge.stage] = judge
        for role, parent, opened in ancestors(generator) if generator is not None else ():
            require_apart(judge, role, parent, opened)
    return found


def _plan(
    dataset: Dataset, source: Source, roll: Roll, attributes: Sequence[str], config: AuditJobConfig
) -> Plan:
    studies = study_table(dataset, config.split, limit=config.studies, fold=config.fold)
    size = config.chunk_studies
    plan = Plan(observed_set(dataset, studies, split=config.split, size=size))
    for attribute in dict.fromkeys(attributes):
        try:
            images = counterfactual_set(
                dataset,
                studies,
                attribute=attribute,
                identity=source.identity(),
                nulls=source.nulls(),
                config=config,
            )
            Edit(do={attribute: images.views.levels[0]}).codes(source.open().levels)
            plan.attributes[attribute] = images
        except (AuditError, EditError) as error:
            plan.refused[attribute] = str(error)
    by_validation = [one for one in roll.candidates if one.config.threshold.method != "given"]
    if by_validation:
        try:
            held = study_table(dataset, "validation", limit=config.validation_studies)
            plan.validation = observed_set(dataset, held, split="validation", size=size)
        except StorageError as error:
            for one in by_validation:
                roll.candidates.remove(one)
                roll.refused[one.name] = f"threshold.method = {one.config.threshold.method}: {error}"
    return plan


def _check_folder(target: Location) -> None:
    there = set(target.files()) - {LOCK_FILE}
    if there and REQUEST_FILE not in there and not any(name.startswith("cache/") for name in there):
        raise AuditError(
            f"--out {target.uri} holds files, but none of a python -m jobs audit. Give an empty or a new folder."
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
        answers = do_all(do, "scores of chunks", work.scores(roll.candidates))
    errors = {answer["classifier"]: answer["error"] for answer in answers if answer["error"]}
    total = sum(len(images.chunks) for images in plan.sets)
    for one in [one for one in roll.candidates if one.name in errors]:
        left = sum(len(piece.chunks) for piece in work.scores([one]) if isinstance(piece, ScoreWork))
        roll.candidates.remove(one)
        roll.refused[one.name] = (
            f"{errors[one.name]} ({total - left} of {total} chunks are scored and kept.)"
        )


def _export(plan: Plan, source: Source, target: Location, dataset: Dataset) -> int:
    findings = source.config.findings or dataset.manifest.finding_names
    count = export_images(target / "export", source, plan.sets, findings=findings)
    logger.info("%d images are in %s", count, (target / "export").uri)
    return count


def _counted(
    plan: Plan, source: Source, jury: Jury, roll: Roll, config: AuditJobConfig
) -> AuditResult:
    """The audits of all attributes."""
    thresholds = choose_thresholds(source.cache, roll.candidates, plan.validation)
    audited: dict[str, AttributeAudit] = {}
    refused = dict(plan.refused)
    warnings = [*roll.warnings, *_generator_warnings(source, config)]
    for attribute, images in plan.attributes.items() if roll.candidates else ():
        kept = source.whole(images)
        if len(kept) < len(images.studies):
            warnings.append(
                f"Attribute {attribute!r}: {len(images.studies) - len(kept)} of {len(images.studies)} studies "
                "are left out, as the generator could not make every image of them."
            )
        try:
            audited[attribute] = _of_attribute(
                images, plan, source, jury, roll, thresholds, kept=kept, config=config
            )
        except AuditError as error:
            refused[attribute] = str(error)
    return AuditResult(
        attributes=audited,
        refused={"attributes": refused, "classifiers": roll.refused, "targets": thresholds.refused},
        warnings=warnings,
        provenance=_provenance(source, jury, plan),
        candidates=roll.candidates,
        targets=thresholds.targets,
        source=source,
    )


def _of_attribute(
    images: ImageSet,
    plan: Plan,
    source: Source,
    jury: Jury,
    roll: Roll,
    thresholds: Thresholds,
    *,
    kept: Sequence[int],
    config: AuditJobConfig,
) -> AttributeAudit:
    assembled = assemble(
        source.cache,
        roll.candidates,
        thresholds.targets,
        images,
        plan.observed,
        whole=kept,
        config=config,
    )
    readings = gate_readings(read_judged(jury, images), images, jury.labels(), kept=assembled.kept)
    settings = config.audit if source.bundle is not None else _waived(config.audit)
    return AttributeAudit(
        effect=counterfactual_effect(assembled.scores, settings, readings=readings),
        scores=assembled.scores,
        associational=associational(assembled.scores, config.audit),
        images=images,
        kept=assembled.kept,
    )


def _waived(config: AuditConfig) -> AuditConfig:
    """The same without gates: what the exact generator shows is true, whatever a judge reads."""
    reason = "the generator is the phantom's own causal model and renderer"
    names = ("effectiveness", "composition", "off_target", "identity", "judge_auroc")
    waived = {**dict.fromkeys(names, reason), **config.gates.waived}
    return config.model_copy(update={"gates": config.gates.model_copy(update={"waived": waived})})


def _generator_warnings(source: Source, config: AuditJobConfig) -> list[str]:
    if source.bundle is None:
        return []
    fingerprint = source.dataset.manifest.fingerprint
    said = trained_on(source.bundle, fingerprint=fingerprint, split=config.split, fold=config.fold)
    return [f"Generator: {said}"] if said else []


def _provenance(source: Source, jury: Jury, plan: Plan) -> dict[str, Any]:
    manifest, config = source.dataset.manifest, source.config
    return {
        "generator": source.identity()["generator"],
        "data": {
            "source": manifest.source,
            "fingerprint": manifest.fingerprint,
            "split": config.split,
            "fold": config.fold,
            "studies": len(plan.observed.studies),
        },
        "judges": {stage: bundle.checksum for stage, bundle in jury.bundles.items()},
        "seed": config.seed,
        "code_version": code_version(),
    }
