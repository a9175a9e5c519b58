"""Counts and vocabularies of an ingested dataset, from its index rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterray.data.dataset import SPLITS
from counterray.data.labels import FINDINGS
from counterray.data.study import ATTRIBUTES

AGE_BANDS = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 121))
"""Lower (inclusive) and upper (exclusive) bounds of the bands in which ages are counted [years]."""


def counts(rows: pa.Table) -> dict[str, Any]:
    """Split to its numbers of studies and patients, and numbers by finding, sex and age band.

    Args:
        rows: Kept rows of ``chunks.INDEX_SCHEMA``.
    """
    return {split: _counts(rows.filter(pc.equal(rows["split"], split))) for split in SPLITS}


def vocabulary(rows: pa.Table, fixed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Values of each categorical attribute that is known of at least one study.

    Args:
        rows: Kept rows of ``chunks.INDEX_SCHEMA``.
        fixed: Values, in order, that the source fixes; others that were seen follow, sorted.
    """
    values = {}
    for name in (name for name, kind in ATTRIBUTES.items() if kind == "categorical"):
        seen = set(pc.unique(rows[name]).to_pylist()) - {None}
        if seen:
            first = fixed.get(name, ())
            values[name] = (*first, *sorted(seen - set(first)))
    return values


def labelled_findings(rows: pa.Table) -> tuple[str, ...]:
    """Findings with at least one label, in the vocabulary's order."""
    findings = rows["findings"].combine_chunks()
    return tuple(name for name in FINDINGS if findings.field(name).null_count < len(findings))


def finding_counts(rows: pa.Table) -> dict[str, dict[str, int]]:
    """Finding with a label to its numbers of ``present``, ``absent``, ``uncertain`` and ``unknown``."""
    findings = rows["findings"].combine_chunks()
    return {name: _label_counts(findings.field(name)) for name in labelled_findings(rows)}


def distinct(rows: pa.Table, column: str) -> tuple[str, ...]:
    """Sorted distinct entries of a list column."""
    return tuple(sorted(pc.unique(pc.list_flatten(rows[column])).to_pylist()))


def leaking_patients(rows: pa.Table) -> int:
    """Number of patients with images in more than one split; anything but 0 is a fault of ours."""
    pairs = rows.group_by(["patient_id", "split"]).aggregate([])
    return len(pairs) - int(pc.count_distinct(pairs["patient_id"]).as_py())


def _counts(rows: pa.Table) -> dict[str, Any]:
    return {
        "studies": len(rows),
        "patients": pc.count_distinct(rows["patient_id"]).as_py(),
        "findings": finding_counts(rows),
        "sex": _value_counts(rows["sex"]),
        "age_band": _age_bands(rows["age"]),
    }


def _label_counts(labels: pa.Array) -> dict[str, int]:
    names = {1: "present", 0: "absent", -1: "uncertain", None: "unknown"}
    found = {item["values"]: item["counts"] for item in labels.value_counts().to_pylist()}
    return {name: found.get(value, 0) for value, name in names.items()}


def _value_counts(values: pa.ChunkedArray) -> dict[str, int]:
    found = values.value_counts().to_pylist()
    return {item["values"] or "unknown": item["counts"] for item in found}


def _age_bands(ages: pa.ChunkedArray) -> dict[str, int]:
    bands = {}
    for lowest, end in AGE_BANDS:
        inside = pc.and_(pc.greater_equal(ages, lowest), pc.less(ages, end))
        bands[f"{lowest}-{end - 1}"] = pc.sum(inside).as_py() or 0
    return {**bands, "unknown": ages.null_count}
