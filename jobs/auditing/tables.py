"""Tables of predictions beside the images that an audit asks about: what they lack, and what is not used."""

from __future__ import annotations

from counterray.audits.classifiers.table import TableClassifier, TableConfig
from counterray.audits.errors import AuditError
from counterray.storage import StorageError
from jobs.auditing.candidates import Roll
from jobs.auditing.making import Source
from jobs.auditing.planning import Plan
from jobs.auditing.scoring import Candidate

_REMEDY = (
    "Export the set that this audit uses with --set export=true, predict all of it, and give that table "
    "with the same data, generator, attributes and settings."
)


def check_tables(plan: Plan, source: Source, roll: Roll) -> None:
    """Compares every table with all images at once, before any of it is scored.

    A table that lacks an image, or knows none, is refused; of predictions of other images a warning says how
    many there are.

    Args:
        plan: The sets of images, which have been made.
        source: Where they are.
        roll: Classifiers; changed in place.
    """
    for one in list(roll.candidates):
        if not isinstance(one.config, TableConfig):
            continue
        try:
            warning = _compared(TableClassifier(one.config), _asked(one, plan, source))
        except (AuditError, StorageError) as error:
            roll.candidates.remove(one)
            roll.refused[one.name] = str(error)
            continue
        roll.warnings += [warning] if warning else []


def _asked(candidate: Candidate, plan: Plan, source: Source) -> list[str]:
    """Names of the images that the candidate is asked about."""
    sets = [plan.observed, *plan.attributes.values()]
    if candidate.config.threshold.method != "given" and plan.validation is not None:
        sets.append(plan.validation)
    return [key for images in sets for key in source.keys(images)]


def _compared(table: TableClassifier, asked: list[str]) -> str:
    """A warning of predictions that are not used; empty where there are none.

    Raises:
        AuditError: If an image has no prediction.
    """
    missing = [key for key in asked if key not in table.keys]
    beyond = len(table.keys) - (len(asked) - len(missing))
    if asked and len(missing) == len(asked):
        raise AuditError(
            f"Classifier {table.name!r}: none of the {len(table.keys)} images that its table names is among "
            f"the {len(asked)} of this audit, such as {missing[0]}. {_REMEDY}"
        )
    others = f"{beyond} of its {len(table.keys)} predictions are of images that this audit does not have"
    if missing:
        raise AuditError(
            f"Classifier {table.name!r} has no prediction of {len(missing)} of {len(asked)} images, such as "
            f"{missing[0]}{f'; {others}' if beyond else ''}. {_REMEDY}"
        )
    return f"Classifier {table.name!r}: {others}; they are not used." if beyond else ""
