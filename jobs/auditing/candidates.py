"""From what ``--classifier`` names to what is audited; who cannot be is refused, and the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from counterray.audits.classifiers.bundle import BundleClassifier
from counterray.audits.classifiers.contract import ClassifierError, ImageClassifier
from counterray.audits.classifiers.opening import open_classifier, read_classifier, require_distinct
from counterray.audits.errors import AuditError
from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.data.dataset import Dataset
from counterray.storage import StorageError
from jobs.ancestry import trained_on
from jobs.auditing.request import AuditJobConfig
from jobs.auditing.scoring import Candidate


@dataclass
class Roll:
    """Who is audited.

    Attributes:
        candidates: The classifiers that are.
        refused: Name, or address, of each that is not to the reason.
        warnings: What a reader must know of the others.
    """

    candidates: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def open_candidates(addresses: Sequence[str], dataset: Dataset, config: AuditJobConfig) -> Roll:
    """Opens every classifier once, here, so that what cannot work is told before images are made.

    Raises:
        ClassifierError: If two have one name.
    """
    roll = Roll()
    for address in addresses:
        name = address
        try:
            settings = read_classifier(address)
            classifier = open_classifier(settings, allowed_hosts=config.allowed_hosts)
            name = classifier.name
            roll.warnings += _training_warnings(classifier, dataset, config)
            audited = _audited(classifier, dataset, config)
        except (AuditError, BundleError, ConfigError, StorageError) as error:
            roll.refused[name] = str(error)
            continue
        left_out = [finding for finding in classifier.findings if finding not in audited]
        if left_out:
            roll.warnings.append(
                f"Classifier {name!r}: {', '.join(left_out)} were not audited, as the data do not label "
                "them or findings does not name them."
            )
        roll.candidates.append(
            Candidate(settings, name, classifier.findings, audited, classifier.fingerprint)
        )
    require_distinct([candidate.name for candidate in roll.candidates])
    return roll


def _training_warnings(classifier: ImageClassifier, dataset: Dataset, config: AuditJobConfig) -> list[str]:
    """What speaks against auditing a bundle on these studies.

    Raises:
        ClassifierError: If it trained on their patients and the settings refuse that.
    """
    if not isinstance(classifier, BundleClassifier):
        return []
    fingerprint = dataset.manifest.fingerprint
    said = trained_on(classifier.bundle, fingerprint=fingerprint, split=config.split, fold=config.fold)
    if not said:
        return []
    if classifier.bundle.manifest["data_fingerprint"] == fingerprint and config.training_patients == "refuse":
        raise ClassifierError(f"{said} To audit it all the same, set training_patients=warn.")
    return [said]


def _audited(classifier: ImageClassifier, dataset: Dataset, config: AuditJobConfig) -> tuple[str, ...]:
    """The findings that are audited, in the classifier's order.

    Raises:
        ClassifierError: If there is none.
    """
    wanted = config.findings or dataset.manifest.finding_names
    found = tuple(finding for finding in classifier.findings if finding in wanted)
    if not found:
        raise ClassifierError(
            f"Classifier {classifier.name!r} knows {', '.join(classifier.findings)}; none of them is among "
            f"{', '.join(wanted)}. If they are the same under other names, give its findings those names in "
            "its YAML file; to audit findings that the data do not label, set findings=[...]."
        )
    return found
