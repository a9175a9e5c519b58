"""`AttributeResults`: all that was found about one attribute, as the report takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterray.audits.cit_lr import CitLr
from counterray.audits.errors import AuditError
from counterray.audits.findings import EffectAudit
from counterray.audits.group_performance import GroupPerformance
from counterray.audits.reporting.causes import CausalStatement
from counterray.audits.reporting.gallery import Example
from counterray.audits.reporting.groups import (
    Association,
    LevelCount,
    associations,
    level_counts,
    performance_by_group,
)
from counterray.audits.reporting.wording import direction_sentence
from counterray.audits.scores import CounterfactualScores
from counterray.evaluation.report import Missing


@dataclass(frozen=True, kw_only=True)
class AttributeResults:
    """What was found about one attribute.

    Attributes:
        audits: The counterfactual audit; or two, of the total and of the direct effect.
        counts: Target's name to observed level to how many of it there are.
        performance: Target's name to its performance by observed level, or why there is none.
        associations: Associational tests beside the audit.
        without_cit_lr: Why CIT-LR is not among them; empty where it is.
        causes: The causal graph as its user states it, if at all.
        examples: Most affected patients with their images.

    Raises:
        AuditError: If the audits are not of one attribute, or two are of the same effect.
    """

    audits: Sequence[EffectAudit]
    counts: Mapping[str, Mapping[str, LevelCount]]
    performance: Mapping[str, GroupPerformance | Missing]
    associations: Sequence[Association]
    without_cit_lr: str = ""
    causes: CausalStatement | None = None
    examples: Sequence[Example] = field(default=())

    def __post_init__(self) -> None:
        attributes = {audit.attribute for audit in self.audits}
        if len(attributes) != 1:
            raise AuditError(
                f"Audits of {', '.join(sorted(attributes)) or 'no attribute'} were given as those of one; "
                "the report takes each attribute's apart."
            )
        effects = [audit.effect for audit in self.audits]
        if len(set(effects)) < len(effects):
            raise AuditError(
                f"Two audits of {self.attribute!r} are of the {effects[0]} effect; give one of each effect."
            )

    @classmethod
    def of(
        cls,
        scores: CounterfactualScores,
        audits: Sequence[EffectAudit],
        *,
        cit_lr: CitLr | str = "it was not asked for",
        causes: CausalStatement | None = None,
        examples: Sequence[Example] = (),
        resamples: int = 200,
    ) -> AttributeResults:
        """With counts, group performance and associational tests of the observed images.

        Targets that the audit refused are left out of them: their scores cannot be used.

        Args:
            scores: What classifiers said; of two audits either's, since observed images are the same.
            audits: See above.
            cit_lr: Of the targets that the audit did not refuse, in their order; or why it was not made.
            causes: See above.
            examples: See above.
            resamples: Of patients, for the intervals of group performance.

        Raises:
            AuditError: As the class, or if ``cit_lr`` is of other targets.
        """
        refused = scores.problems()
        usable = scores.select([row for row in range(len(scores.targets)) if row not in refused])
        minimum = audits[0].config.minimum_patients if audits else 0
        return cls(
            audits=audits,
            counts=level_counts(usable),
            performance=performance_by_group(
                usable,
                minimum_patients=minimum,
                resamples=resamples,
                seed=audits[0].config.seed if audits else 0,
            ),
            associations=associations(
                usable, cit_lr=cit_lr if isinstance(cit_lr, CitLr) else None, minimum_patients=minimum
            ),
            without_cit_lr=cit_lr if isinstance(cit_lr, str) else "",
            causes=causes,
            examples=examples,
        )

    @property
    def attribute(self) -> str:
        """Its name."""
        return self.audits[0].attribute

    def as_json(self) -> dict[str, Any]:
        """Plain values: every number of the page."""
        return {
            "attribute": self.attribute,
            "audits": [_audit_json(audit) for audit in self.audits],
            "counts": {
                target: {level: count.as_json() for level, count in levels.items()}
                for target, levels in self.counts.items()
            },
            "performance": {
                target: {"missing": found.reason} if isinstance(found, Missing) else _performance_json(found)
                for target, found in self.performance.items()
            },
            "associations": [association.as_json() for association in self.associations],
            "without_cit_lr": self.without_cit_lr,
            "causes": None if self.causes is None else self.causes.as_json(self.attribute),
            "examples": [example.as_json() for example in self.examples],
        }


def _audit_json(audit: EffectAudit) -> dict[str, Any]:
    found = audit.as_json()
    for entry, finding in zip(found["findings"], audit.findings, strict=True):
        entry["direction"] = direction_sentence(audit, finding)
    return found


def _performance_json(found: GroupPerformance) -> dict[str, Any]:
    def plain(number: float) -> float | None:
        return number if number == number else None  # JSON has no NaN

    return {
        "by_level": {
            level: {
                name: {"value": plain(each.value), "low": plain(each.low), "high": plain(each.high)}
                for name, each in metrics.items()
            }
            for level, metrics in found.by_level.items()
        },
        "difference": {name: plain(value) for name, value in found.difference.items()},
    }
