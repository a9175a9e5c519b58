"""Scores of a chunk by a classifier: asked once, kept in storage, so that nothing answered is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from counterray.audits.classifiers.contract import ClassifierError, ImageClassifier
from counterray.audits.classifiers.opening import AnyClassifier, open_classifier
from counterray.bundle import BundleError
from counterray.evaluation.intervals import Floats
from counterray.storage import Location, StorageError
from jobs.auditing.making import Source
from jobs.auditing.sets import ImageSet, SetChunk
from jobs.generation.chunks import parquet, read_parquet

SCORE_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("scores", pa.list_(pa.float64())),
    ]
)
"""Probabilities of a classifier's findings on a study's view; null where there is no image."""


@dataclass(frozen=True)
class Candidate:
    """A classifier that is audited.

    Attributes:
        config: How it is opened.
        name: What reports call it.
        findings: Its outputs.
        audited: Those that are audited.
        fingerprint: See `ImageClassifier`.
    """

    config: AnyClassifier
    name: str
    findings: tuple[str, ...]
    audited: tuple[str, ...]
    fingerprint: str

    @property
    def is_remote(self) -> bool:
        """Whether images are sent to it: its rate limit then holds for one worker."""
        return self.config.kind == "http"


@dataclass(frozen=True)
class ScoreWork:
    """Chunks that one worker asks a classifier about, one after another."""

    candidate: Candidate
    chunks: tuple[SetChunk, ...]


@dataclass
class Scorer:
    """Asks classifiers; opens each in the process that first asks it.

    Attributes:
        source: Where the images are.
        allowed_hosts: Hosts that images may be sent to.
    """

    source: Source
    allowed_hosts: tuple[str, ...]
    _open: dict[str, ImageClassifier] = field(default_factory=dict, init=False, repr=False)
    _failed: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, work: ScoreWork) -> dict[str, str]:
        """Scores the chunks; returns the classifier's name and, where it failed, why."""
        candidate = work.candidate
        # What failed here after its retries is not tried again with every further chunk.
        if candidate.name not in self._failed:
            try:
                for chunk in work.chunks:
                    self._score(candidate, chunk)
            except (BundleError, ClassifierError) as error:
                self._failed[candidate.name] = str(error)
        return {"classifier": candidate.name, "error": self._failed.get(candidate.name, "")}

    def _score(self, candidate: Candidate, chunk: SetChunk) -> None:
        classifier = self._opened(candidate)
        if classifier.fingerprint != candidate.fingerprint:
            raise ClassifierError(
                f"Classifier {candidate.name!r} changed while it was audited, or is another one on Ray's "
                "workers. Run again."
            )
        rows = []
        for view, images in self.source.read(chunk).items():
            there = images.flatten(1).isfinite().all(dim=1)
            keys = [key for key, made in zip(chunk.keys(view), there.tolist(), strict=True) if made]
            found = iter(classifier.scores(images[there], keys=keys).tolist() if keys else [])
            for number, made in zip(chunk.studies["number"].to_pylist(), there.tolist(), strict=True):
                rows.append({"number": number, "view": view, "scores": next(found) if made else None})
        place = score_place(self.source.cache, candidate, chunk)
        place.write_bytes(parquet(pa.Table.from_pylist(rows, SCORE_SCHEMA)))

    def _opened(self, candidate: Candidate) -> ImageClassifier:
        if candidate.name not in self._open:
            try:
                opened = open_classifier(candidate.config, allowed_hosts=self.allowed_hosts)
            except StorageError as error:  # its own files; what fails of the images ends the job
                raise ClassifierError(f"Classifier {candidate.name!r}: {error}") from error
            self._open[candidate.name] = opened
        return self._open[candidate.name]


def score_place(cache: Location, candidate: Candidate, chunk: SetChunk) -> Location:
    """Where a classifier's scores of a chunk are kept."""
    return cache / f"scores/{candidate.fingerprint[:32]}/{chunk.name}.parquet"


def read_scores(cache: Location, candidate: Candidate, images: ImageSet) -> Floats:
    """A classifier's scores ``[V, N, F]`` of all views and studies; NaN where there is no image."""
    names = images.views.names
    parts = []
    for chunk in images.chunks:
        table = read_parquet(score_place(cache, candidate, chunk), SCORE_SCHEMA)
        none = [np.nan] * len(candidate.findings)
        found = {(row["view"], row["number"]): row["scores"] or none for row in table.to_pylist()}
        numbers = chunk.studies["number"].to_pylist()
        parts.append([[found[view, number] for number in numbers] for view in names])
    return np.concatenate([np.array(part, dtype=np.float64) for part in parts], axis=1)


def score_work(
    cache: Location, candidates: Sequence[Candidate], chunks: Sequence[SetChunk]
) -> list[ScoreWork]:
    """What is not scored yet; an endpoint's chunks are one piece, so that its rate limit holds."""
    there = set((cache / "scores").files())
    work: list[ScoreWork] = []
    for candidate in candidates:
        missing = tuple(
            chunk for chunk in chunks if f"{candidate.fingerprint[:32]}/{chunk.name}.parquet" not in there
        )
        if candidate.is_remote:
            work += [ScoreWork(candidate, missing)] if missing else []
        else:
            work += [ScoreWork(candidate, (chunk,)) for chunk in missing]
    return work
