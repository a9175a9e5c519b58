"""What an audit found, before it is a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterray.audits.findings import EffectAudit
from counterray.audits.reporting.doses import DoseResults
from counterray.audits.scores import CounterfactualScores, Target
from counterray.audits.verdicts import Verdict
from jobs.auditing.scoring import Candidate
from jobs.auditing.sets import ImageSet


@dataclass(frozen=True, kw_only=True)
class AttributeAudit:
    """One attribute with levels.

    Attributes:
        effect: The counterfactual audit.
        scores: What it rests on.
        images: Counterfactuals; `Source.read` reads a chunk of them.
        kept: Positions in ``images.studies`` of the individuals of ``scores``, in order.
    """

    effect: EffectAudit
    scores: CounterfactualScores
    images: ImageSet
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """An audit of a pool of classifiers.

    Attributes:
        attributes: Attribute with levels to its audit.
        doses: Continuous attribute to its audit.
        refused: ``attributes``, ``classifiers`` and ``targets`` that were not audited, each to the reason.
        warnings: What a reader must know.
        candidates: The classifiers.
        targets: Name of a classifier to its targets, with thresholds.
    """

    attributes: Mapping[str, AttributeAudit]
    doses: Mapping[str, DoseResults]
    refused: Mapping[str, Mapping[str, str]]
    warnings: Sequence[str]
    candidates: Sequence[Candidate]
    targets: Mapping[str, Sequence[Target]]

    def incomplete(self) -> list[str]:
        """What was asked for and has no verdict: attributes, classifiers, classifiers for an attribute.

        A single finding without verdict is none of these: that a classifier's output cannot be used is what
        the audit found of it.
        """
        found = [f"attribute {name}" for name in self.refused["attributes"]]
        found += [f"classifier {name}" for name in self.refused["classifiers"]]
        said = {name: {each.target for each in one.effect.findings} for name, one in self.attributes.items()}
        said |= {name: {each.target for each in one.audit.findings} for name, one in self.doses.items()}
        for attribute, targets in said.items():
            judged = {target.classifier for target in targets}
            silent = [each.name for each in self.candidates if each.name not in judged]
            found += [f"classifier {name} for {attribute}" for name in silent]
        return found

    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Attribute to target's name to verdict."""
        found = {name: one.effect.verdicts() for name, one in self.attributes.items()}
        return found | {name: one.audit.verdicts() for name, one in self.doses.items()}
