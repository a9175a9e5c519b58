"""From what is in storage to the audits of all attributes."""

from __future__ import annotations

from collections.abc import Sequence

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.dose_response import dose_response
from counterray.audits.dose_scores import DoseScores
from counterray.audits.errors import AuditError
from counterray.audits.reporting.doses import DoseResults
from counterray.audits.reporting.wording import refused_targets
from counterray.audits.settings import AuditConfig
from jobs.ancestry import trained_on
from jobs.auditing.assembly import Thresholds, assemble, choose_thresholds
from jobs.auditing.candidates import Roll
from jobs.auditing.gating import gate_readings
from jobs.auditing.judging import Jury, read_judged
from jobs.auditing.making import Source
from jobs.auditing.planning import Plan
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.result import AttributeAudit, AuditResult
from jobs.auditing.sets import ImageSet


def count(plan: Plan, source: Source, jury: Jury, roll: Roll, config: AuditJobConfig) -> AuditResult:
    """The audits of all attributes; those that cannot be made are refused."""
    thresholds = choose_thresholds(source.cache, roll.candidates, plan.validation)
    audited: dict[str, AttributeAudit] = {}
    doses: dict[str, DoseResults] = {}
    refused = dict(plan.refused)
    warnings = [*roll.warnings, *_generator_warnings(source, config)]
    warnings += [images.set_aside for images in plan.attributes.values() if images.set_aside]
    for attribute, images in plan.attributes.items() if roll.candidates else ():
        kept = source.whole(images)
        if len(kept) < len(images.studies):
            warnings.append(
                f"Attribute {attribute!r}: {len(images.studies) - len(kept)} of {len(images.studies)} "
                "studies are left out, as the generator could not make every image of them."
            )
        try:
            found = _of_attribute(images, plan, source, jury, roll, thresholds, kept=kept, config=config)
            if isinstance(found, DoseResults):
                doses[attribute] = found
            else:
                audited[attribute] = found
        except AuditError as error:
            refused[attribute] = str(error)
    return AuditResult(
        attributes=audited,
        doses=doses,
        refused={
            "attributes": refused,
            "classifiers": roll.refused,
            "targets": {
                **thresholds.refused,
                **refused_targets(
                    [*(one.effect for one in audited.values()), *(one.audit for one in doses.values())]
                ),
            },
        },
        warnings=warnings,
        candidates=roll.candidates,
        targets=thresholds.targets,
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
) -> AttributeAudit | DoseResults:
    assembled = assemble(
        source.cache,
        roll.candidates,
        thresholds.targets,
        images,
        plan.observed,
        whole=kept,
        config=config,
    )
    readings = gate_readings(
        read_judged(jury, images), images, jury.labels(), findings=jury.findings(), kept=assembled.kept
    )
    settings = config.audit if source.bundle is not None else _waived(config.audit)
    scores = assembled.scores
    if isinstance(scores, DoseScores):
        audit = dose_response(scores, settings, readings=readings)
        return DoseResults(audit=audit, individuals=len(scores), patients=len(set(scores.patients)))
    return AttributeAudit(
        effect=counterfactual_effect(scores, settings, readings=readings),
        scores=scores,
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
