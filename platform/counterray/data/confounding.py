"""Selection that confounds: studies are left out so that a finding goes with a level of an attribute.

This is how shortcuts come about: the ill of one hospital were imaged on one scanner. A classifier trained on
such a selection is a case of which an audit has to find the fault.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
from pydantic import Field

from counterray.config import Config, ConfigError
from counterray.data.dataset import DatasetInfo


class ConfoundingConfig(Config):
    """What goes with what."""

    finding: str
    """Finding, such as ``pleural_effusion``."""
    attribute: str
    """Categorical attribute, such as ``scanner``."""
    level: str
    """Its level that goes with the finding."""
    strength: float = Field(default=0.9, ge=0, le=1)
    """Probability that a study is left out which has the finding and not the level, or the level and not the
    finding; 1 makes the two the same."""

    def require(self, info: DatasetInfo) -> None:
        """Raises unless the data have the finding and the level.

        Raises:
            ConfigError: With what they have.
        """
        levels = info.vocabulary.get(self.attribute, ())
        for setting, name, there in (
            ("finding", self.finding, info.finding_names),
            ("level", self.level, levels),
        ):
            if name not in there:
                raise ConfigError(
                    f"loader.confounding.{setting} = {name!r} is not in the data, which have "
                    f"{', '.join(there) or f'no levels of {self.attribute!r}'}."
                )

    def keeps(self, table: pa.Table) -> list[bool]:
        """Of each row whether it stays, by a hash of its ``image_id``; one whose label is unknown stays."""
        findings: list[dict[str, Any]] = table.column("findings").to_pylist()
        columns = (table.column(name).to_pylist() for name in ("image_id", self.attribute))
        return [
            self._keeps(image_id, found.get(self.finding), level)
            for image_id, level, found in zip(*columns, findings, strict=True)
        ]

    def _keeps(self, image_id: str, label: int | None, level: str | None) -> bool:
        if label not in (0, 1) or level is None or bool(label) == (level == self.level):
            return True
        digest = hashlib.sha256(f"confounding:{image_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 >= self.strength
