"""Tables of studies or of reports with what a refiner keeps of them: what one worker does, without Ray."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from counterray.config import Config
from counterray.data.summary import finding_counts
from counterray.reports import llm
from counterray.reports.agreement import agreement
from counterray.reports.llm import Endpoint, LlmConfig
from counterray.reports.refine import RefineError
from counterray.reports.refiners import AnyRefiner, make_refiner
from counterray.reports.rules import RulesConfig
from counterray.reports.sections import describes
from counterray.storage import Location

_ENOUGH = 50
"""Reports after which the share of fallbacks is looked at."""


class RefineConfig(Config):
    """How reports are refined."""

    refiner: AnyRefiner = RulesConfig()
    """Which refiner, and its settings."""
    cache: str = ""
    """Folder or ``s3://`` URI of the llm refiner's answers; empty for ``cache`` in the new dataset."""
    labels: Literal["keep", "mentioned", "unmentioned_absent"] = "keep"
    """What becomes of labels that the source leaves open: ``keep`` leaves them so, ``mentioned`` takes them
    from the report, ``unmentioned_absent`` also takes for absent what a report does not mention. Labels that
    the source gives stay."""
    max_fell_back_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of a worker's reports (of 50 where it has had fewer) that the llm refiner may leave to the rules;
    more is an error."""

    def content_settings(self, endpoint: Endpoint | None) -> dict[str, Any]:
        """All that decides what is kept of a report, as plain JSON.

        The llm refiner's answers depend on the rules too, which stand in where it fails.
        """
        words = Path(__file__).with_name("lexicon.yaml").read_bytes()
        settings = {"refiner": self.refiner.name, "lexicon": hashlib.sha256(words).hexdigest()[:12]}
        if isinstance(self.refiner, LlmConfig) and endpoint is not None:
            settings |= {"model": endpoint.model, "instructions": llm.PROMPT_VERSION}
        if self.labels != "keep":
            settings |= {"labels": self.labels}
        return settings


class RefineTransform:
    """Fills ``refined_report`` of a table.

    Args:
        config: The refiner and its settings.
        endpoint: Where the language model is, for ``llm``.
        cache: Folder of answers, for ``llm``.

    Raises:
        RefineError: If the refiner's package is not installed.
    """

    def __init__(self, config: RefineConfig, endpoint: Endpoint | None, cache: Location) -> None:
        self._limit, self._labels = config.max_fell_back_fraction, config.labels
        self._refiner = make_refiner(config.refiner, endpoint, cache)
        self._seen = 0

    def __call__(self, studies: pa.Table, split: str = "") -> tuple[pa.Table, Mapping[str, Any]]:
        """Refines the reports of a table.

        Args:
            studies: Any number of rows with ``patient_id``, ``report`` and ``findings``.
            split: Not used: every report is read alike.

        Returns:
            The table with ``refined_report``, null where no report describes the image, and plain JSON:
            ``reports`` that do, ``undescribed`` ones that do not, the tally's ``events``, the ``agreement``
            with the source's labels, in which a report of several images of a patient counts once, and, where
            labels are taken from reports, the ``labels`` then.

        Raises:
            RefineError: If too many reports fell back, or the refiner cannot go on.
        """
        texts: list[str | None] = studies["report"].to_pylist()
        written = [row for row, text in enumerate(texts) if text and text.strip()]
        # Silence is no normal image: it gets no prompt and gives no labels.
        rows = [row for row in written if describes(texts[row] or "")]
        before = self._refiner.tally.copy()
        refined = dict(zip(rows, self._refiner.refine([texts[row] or "" for row in rows]), strict=True))
        self._seen += len(rows)
        self._check_limit()
        prompts = [refined[row].prompt if row in refined else None for row in range(len(texts))]
        patients, labels = studies["patient_id"].to_pylist(), studies["findings"].to_pylist()
        distinct = {(patients[row], texts[row]): row for row in rows}.values()
        table = agreement([refined[row].findings for row in distinct], [labels[row] for row in distinct])
        counts = {
            "reports": len(rows),
            "undescribed": len(written) - len(rows),
            "events": dict(self._refiner.tally - before),
            "agreement": table.plain(),
        }
        studies = _with_column(studies, pa.array(prompts, pa.string()))
        if self._labels != "keep":
            filled = [
                self._filled(known, refined[row].findings) if row in refined else known
                for row, known in enumerate(labels)
            ]
            column = pa.array(filled, studies.schema.field("findings").type)
            studies = studies.set_column(studies.schema.get_field_index("findings"), "findings", column)
            counts["labels"] = finding_counts(studies)
            counts["filled"] = sum(
                after[name] is not None and before[name] is None
                for before, after in zip(labels, filled, strict=True)
                for name in before
            )
        return studies, counts

    def _filled(self, known: Mapping[str, int | None], said: Mapping[str, int]) -> dict[str, int | None]:
        """The labels of a study, those left open taken from what its report says."""
        unmentioned = 0 if self._labels == "unmentioned_absent" else None
        return {
            name: said.get(name, unmentioned) if label is None else label for name, label in known.items()
        }

    def _check_limit(self) -> None:
        causes = fallbacks(self._refiner.tally)
        if sum(causes.values()) > self._limit * max(self._seen, _ENOUGH):
            listed = ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))
            raise RefineError(
                f"{sum(causes.values())} of {self._seen} reports were left to the rules ({listed}); "
                f"max_fell_back_fraction is {self._limit:.0%}. Mend the endpoint or raise the limit, and run "
                "again: what is answered stays."
            )


def fallbacks(events: Mapping[str, int]) -> Counter[str]:
    """Cause to number of fallbacks, from a tally."""
    prefix = "fell_back."
    return Counter(
        {name.removeprefix(prefix): count for name, count in events.items() if name.startswith(prefix)}
    )


def _with_column(table: pa.Table, values: pa.Array) -> pa.Table:
    field = pa.field("refined_report", pa.string())
    position = table.schema.get_field_index(field.name)
    if position < 0:
        return table.append_column(field, values)
    return table.set_column(position, field, values)
