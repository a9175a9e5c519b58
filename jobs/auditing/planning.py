"""What an audit asks about, before anything is made: sets of images, judges, and who is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from counterray.audits.errors import AuditError
from counterray.bundle import Bundle, BundleError, open_bundle
from counterray.data.dataset import Dataset
from counterray.models.generator import Edit, EditError, Generator
from counterray.storage import StorageError
from jobs.ancestry import ancestors, require_apart
from jobs.auditing.candidates import Roll
from jobs.auditing.judging import JUDGES
from jobs.auditing.making import Source
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.sets import ImageSet, counterfactual_set, observed_set, own_doses, study_table


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


def judge_bundles(judges: Sequence[str], generator: Bundle | None) -> dict[str, Bundle]:
    """Stage to bundle; each in a role of its own and apart from the generator's losses.

    Raises:
        BundleError: If a bundle cannot be trusted, measures no gate, or is not apart.
    """
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


def make_plan(
    dataset: Dataset, source: Source, roll: Roll, attributes: Sequence[str], config: AuditJobConfig
) -> Plan:
    """The sets of images, and who drops out for want of levels, patients or validation studies.

    Raises:
        AuditError: If no study is left.
        StorageError: If the split has no study.
    """
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
            _require_settable(images, source.open())
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


def _require_settable(images: ImageSet, generator: Generator) -> None:
    """Checks that a generator can set an attribute to all that it would be asked for.

    Raises:
        EditError: If it cannot, with what it can.
    """
    views = images.views
    values: list[str | float] = list(views.settings.values())
    if views.doses:
        own = own_doses(images.studies, views.attribute)
        values += [float(own.min()), float(own.max())]
    for value in values:
        Edit(do={views.attribute: value}).codes(generator.levels, generator.ranges)
