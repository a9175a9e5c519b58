"""What an audit found, for its files and for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.audits.findings import EffectAudit
from counterray.audits.scores import CounterfactualScores, Target
from jobs.auditing.assembly import plain
from jobs.auditing.making import Source
from jobs.auditing.scoring import Candidate
from jobs.auditing.sets import ImageSet

AUDIT_FILE = "audit.json"


@dataclass(frozen=True, kw_only=True)
class AttributeAudit:
    """One attribute.

    Attributes:
        effect: The counterfactual audit.
        scores: What it rests on.
        associational: Target's name to audits of its decisions on the observed images.
        images: Counterfactuals; `Source.read` reads a chunk of them.
        kept: Positions in ``images.studies`` of the individuals of ``scores``, in order.
    """

    effect: EffectAudit
    scores: CounterfactualScores
    associational: Mapping[str, Mapping[str, Any]]
    images: ImageSet
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """An audit of a pool of classifiers.

    Attributes:
        attributes: Attribute to its audit.
        refused: ``attributes``, ``classifiers`` and ``targets`` that were not audited, each to the reason.
        warnings: What a reader must know.
        provenance: Data, generator, judges, seed and versions, as plain values.
        candidates: The classifiers.
        targets: Name of a classifier to its targets, with thresholds.
        source: Where the images are.
    """

    attributes: Mapping[str, AttributeAudit]
    refused: Mapping[str, Mapping[str, str]]
    warnings: Sequence[str]
    provenance: Mapping[str, Any]
    candidates: Sequence[Candidate]
    targets: Mapping[str, Sequence[Target]]
    source: Source = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values: the content of ``audit.json``."""
        return {
            "audits": {name: plain(one.effect.as_json()) for name, one in self.attributes.items()},
            "associational": {name: plain(one.associational) for name, one in self.attributes.items()},
            "refused": {kind: dict(reasons) for kind, reasons in self.refused.items()},
            "warnings": list(self.warnings),
            "classifiers": {one.name: self._described(one) for one in self.candidates},
            **plain(self.provenance),
        }

    def _described(self, candidate: Candidate) -> dict[str, Any]:
        config = candidate.config
        return {
            "kind": config.kind,
            "fingerprint": candidate.fingerprint,
            "findings": list(candidate.findings),
            "threshold": config.threshold.model_dump(mode="json"),
            "thresholds": {
                target.finding: target.threshold for target in self.targets.get(candidate.name, ())
            },
        }
