"""The finding vocabulary that every source is mapped to, the maps, and the uncertainty policy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import model_validator

from counterray.config import Config, ConfigError, load

FINDINGS = (
    "no_finding",
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
)
"""CheXpert's fourteen observations (Irvin et al., 2019, https://arxiv.org/abs/1901.07031, table 1)."""

UncertaintyPolicy = Literal["ignore", "zeros", "ones", "keep"]
"""What a loader does with an uncertain label (-1); see `apply_uncertainty`."""


def apply_uncertainty(
    values: npt.NDArray[np.floating], policy: UncertaintyPolicy
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Turns stored labels into training labels and a mask of those that count.

    Args:
        values: Any shape: 1 present, 0 absent, -1 uncertain, NaN not stated.
        policy: ``ignore`` masks uncertain labels; ``zeros`` and ``ones`` read them as absent or present
            (U-Ignore, U-Zeros and U-Ones of the reference); ``keep`` leaves -1 and lets it count, for a
            model that treats uncertainty as a class of its own.

    Returns:
        Labels, with 0 where the mask is false, and the mask; both of the shape of ``values``.

    Raises:
        ValueError: If a value is none of 1, 0, -1 and NaN, or the policy is unknown.

    Reference:
        Irvin et al., "CheXpert", 2019, section 3.2, https://arxiv.org/abs/1901.07031
    """
    if policy not in get_args(UncertaintyPolicy):
        raise ValueError(
            f"Unknown uncertainty policy {policy!r}. Available: {', '.join(get_args(UncertaintyPolicy))}."
        )
    labels = np.asarray(values, dtype=np.float32).copy()
    stated = ~np.isnan(labels)
    if not np.isin(labels[stated], (-1, 0, 1)).all():
        raise ValueError("A stored label is none of 1 (present), 0 (absent), -1 (uncertain) and NaN.")
    uncertain = labels == -1
    mask = stated & ~uncertain if policy == "ignore" else stated
    if policy in ("zeros", "ones"):
        labels[uncertain] = float(policy == "ones")
    labels[~mask] = 0
    return labels, mask


class LabelMap(Config):
    """How a source's own labels read in the vocabulary; a file of ``label_maps``."""

    reference: str
    """Where the source defines its labels."""
    unmentioned: Literal["absent", "unknown"]
    """What it means that a label of the map is not given for an image."""
    no_finding: str
    """The source's label for a normal image, which also states that every mapped finding is absent."""
    labels: dict[str, tuple[str, ...]]
    """Source label to the findings it implies; none for a known label outside of the vocabulary."""
    uninformative: tuple[str, ...] = ()
    """Labels that say the list is incomplete: what is not in it is unknown, whatever ``unmentioned`` says."""
    uncertain_qualifiers: tuple[str, ...] = ()
    """Qualifiers that make a label uncertain."""

    @model_validator(mode="after")
    def _check_findings(self) -> LabelMap:
        unknown = sorted({name for names in self.labels.values() for name in names} - set(FINDINGS))
        if unknown:
            raise ValueError(f"labels name findings outside of the vocabulary: {', '.join(unknown)}")
        return self

    @property
    def covered(self) -> tuple[str, ...]:
        """Findings that this source labels at all, in the vocabulary's order."""
        named = {name for names in self.labels.values() for name in names} | {"no_finding"}
        return tuple(name for name in FINDINGS if name in named)

    def findings(self, labels: Iterable[str], *, uncertain: Iterable[str] = ()) -> dict[str, int]:
        """Reads one image's list of labels.

        Args:
            labels: Labels of the source, each stating something present.
            uncertain: Labels of the source, each stating something possible.

        Returns:
            Finding to 1 (present), 0 (absent) or -1 (uncertain); what is not stated is missing.
        """
        present, possible = set(labels), set(uncertain)
        complete = self.unmentioned == "absent" and not present & set(self.uninformative)
        present -= set(self.uninformative)
        normal = self.no_finding in present
        absent = normal or complete
        values = dict.fromkeys(self.covered, 0) if absent else {}
        for group, value in ((possible, -1), (present, 1)):
            for label in group:
                values.update(dict.fromkeys(self.labels.get(label, ()), value))
        abnormal = bool((present | possible) - {self.no_finding})
        if normal or abnormal:
            values["no_finding"] = int(not abnormal)
        elif "no_finding" in values:
            # An empty list says that nothing was labelled, not that the image is normal.
            del values["no_finding"]
        return values

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a source that has one for each label."""
        return (self.no_finding, *self.labels)

    def table_findings(self, table: pd.DataFrame) -> list[dict[str, int]]:
        """Reads a table with a column for each label: ``1.0``, ``0.0``, ``-1.0``, or empty.

        Args:
            table: Columns named by labels; others are not looked at.

        Returns:
            For each row, finding to 1 (present), 0 (absent) or -1 (uncertain); what is empty is missing.

        Raises:
            ConfigError: If a value is none of these.
        """
        targets = {self.no_finding: ("no_finding",), **self.labels}
        targets = {column: targets[column] for column in targets if column in table.columns}
        columns = [pd.to_numeric(table[name].replace("", "nan"), errors="coerce") for name in targets]
        for name, column in zip(targets, columns, strict=True):
            stated = ~table[name].isin(("", "nan"))
            if not column[stated].isin((-1, 0, 1)).all():
                raise ConfigError(
                    f"The label column {name!r} holds a value that is none of 1, 0, -1 and empty. "
                    "Mend it in the label file."
                )
        numbers = np.stack([column.to_numpy(dtype=float) for column in columns], axis=1)
        return [
            {
                finding: int(value)
                for value, findings in zip(row, targets.values(), strict=True)
                if value == value
                for finding in findings
            }
            for row in numbers.tolist()
        ]

    def unknown(self, labels: Iterable[str]) -> set[str]:
        """The labels that this map does not know."""
        return set(labels) - set(self.labels) - {self.no_finding} - set(self.uninformative)


_MAPS = Path(__file__).parent / "label_maps"


def label_maps() -> tuple[str, ...]:
    """Names of the label maps, sorted."""
    return tuple(sorted(path.stem for path in _MAPS.glob("*.yaml")))


@cache
def label_map(source: str) -> LabelMap:
    """The label map of a source, from ``label_maps/<source>.yaml``.

    Raises:
        ConfigError: If there is none, or it names a finding outside of the vocabulary.
    """
    return load(LabelMap, _MAPS / f"{source}.yaml")
