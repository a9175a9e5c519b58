"""Predictions made elsewhere for an exported set: so a model that may not leave its site is audited too."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence, Set
from typing import Literal

import numpy as np
import pandas as pd
from torch import Tensor

from counterray.audits.classifiers.contract import (
    AdapterConfig,
    ClassifierError,
    as_scores,
    fingerprint_of,
    read_file,
    require_findings,
)
from counterray.evaluation.intervals import Floats
from counterray.storage import resolve

IMAGE_COLUMN = "image"
"""Column with the exported images' names, without folder and ending."""


class TableConfig(AdapterConfig):
    """A table of predictions."""

    kind: Literal["table"] = "table"
    """The kind."""
    file: str
    """CSV or Parquet: path or ``s3://`` URI. A row for each image of the export, a column ``image`` with its
    name, and a column of probabilities for each finding."""
    findings: tuple[str, ...] = ()
    """Columns to read; all but ``image`` by default."""


class TableClassifier:
    """Implements `ImageClassifier` by predictions that were made elsewhere.

    Args:
        config: Which ones.

    Raises:
        ClassifierError: If the file is no such table, lacks a column, or names an image twice.
        StorageError: If it cannot be read.
    """

    def __init__(self, config: TableConfig) -> None:
        self.config, self.name = config, config.name or config.file
        data = read_file(self.name, resolve(config.file))
        table = _table(self.name, config.file, data)
        columns = [str(column) for column in table.columns if column != IMAGE_COLUMN]
        self.findings = require_findings(self.name, config.findings or columns)
        missing = [name for name in (IMAGE_COLUMN, *self.findings) if name not in table.columns]
        if missing:
            raise ClassifierError(
                f"Classifier {self.name!r}: the table has no column {', '.join(missing)}. It has: "
                f"{', '.join(map(str, table.columns))}."
            )
        keys = [_stem(str(key)) for key in table[IMAGE_COLUMN]]
        self._rows = {key: row for row, key in enumerate(keys)}
        if len(self._rows) < len(keys):
            raise ClassifierError(
                f"Classifier {self.name!r}: {len(keys) - len(self._rows)} rows of the table name an image "
                "that another row names too. Keep one prediction for each image."
            )
        self._values = self._numbers(table)
        without_place = config.model_copy(update={"file": "", "findings": self.findings})
        self.fingerprint = fingerprint_of(without_place, hashlib.sha256(data).hexdigest())

    def _numbers(self, table: pd.DataFrame) -> Floats:
        try:
            return np.asarray(table[list(self.findings)].to_numpy(dtype=np.float64))
        except (TypeError, ValueError):
            raise ClassifierError(
                f"Classifier {self.name!r}: columns {', '.join(self.findings)} hold something that is no "
                "number. Leave a prediction that is missing empty."
            ) from None

    @property
    def keys(self) -> Set[str]:
        """Names of the images that it has predictions of."""
        return self._rows.keys()

    def scores(self, image: Tensor, *, keys: Sequence[str]) -> Floats:
        """Probabilities ``[N, F]`` of the images named ``keys``; see `ImageClassifier`.

        Raises:
            ClassifierError: If an image is not in the table.
        """
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise ClassifierError(
                f"Classifier {self.name!r} has no prediction of {len(missing)} of {len(keys)} images, such "
                f"as {missing[0]}. Export the set that this audit uses with --set export=true, predict all "
                "of it, and give that table."
            )
        found = self._values[[self._rows[key] for key in keys]]
        return as_scores(self.name, found, images=len(keys), findings=self.findings)


def _stem(key: str) -> str:
    return key.rsplit("/", 1)[-1].removesuffix(".png")


def _table(name: str, file: str, data: bytes) -> pd.DataFrame:
    try:
        if file.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(data))
        return pd.read_csv(io.BytesIO(data), dtype={IMAGE_COLUMN: str})
    except (ValueError, OSError) as error:  # pandas' and Arrow's parsing errors are ValueErrors
        raise ClassifierError(
            f"Classifier {name!r}: {file} cannot be read as a table ({type(error).__name__}). CSV with a "
            "header, or Parquet, is needed."
        ) from error
