"""The pieces of work of an audit, what is left of them, and the hands that do them on Ray's workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.auditing.judging import Jury
from jobs.auditing.making import Source
from jobs.auditing.scoring import Candidate, Scorer, ScoreWork, score_work
from jobs.auditing.sets import ImageSet, SetChunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MakeWork:
    """A chunk whose counterfactuals are made."""

    chunk: SetChunk


@dataclass(frozen=True)
class JudgeWork:
    """A chunk whose counterfactuals are judged."""

    chunk: SetChunk


Piece = MakeWork | JudgeWork | ScoreWork


@dataclass
class Hands:
    """What a worker can do; each part opens what it needs when it first needs it."""

    source: Source
    scorer: Scorer
    jury: Jury

    def __call__(self, piece: Piece) -> Any:
        """Does a piece; see `Source.make`, `Jury` and `Scorer`."""
        if isinstance(piece, MakeWork):
            return self.source.make(piece.chunk)
        if isinstance(piece, JudgeWork):
            return self.jury(piece.chunk)
        return self.scorer(piece)


@dataclass(frozen=True)
class Work:
    """What an audit needs, and what of it is not in storage yet.

    Attributes:
        source: The generator.
        jury: The judges.
        attributes: Counterfactuals of each attribute.
        observed: The audited studies.
        validation: Studies by which thresholds are chosen, if any are.
    """

    source: Source
    jury: Jury
    attributes: Sequence[ImageSet]
    observed: ImageSet
    validation: ImageSet | None

    def images(self) -> list[MakeWork]:
        """Counterfactuals to make."""
        there = set((self.source.cache / "images").files())
        return [MakeWork(chunk) for chunk in self._made() if f"{chunk.name}.parquet" not in there]

    def judgements(self) -> list[JudgeWork]:
        """Chunks to judge."""
        there = set((self.source.cache / "judged").files())
        return [
            JudgeWork(chunk)
            for chunk in self._made()
            if "/".join(self.jury.place(chunk).path.split("/")[-2:]) not in there
        ]

    def scores(self, candidates: Sequence[Candidate]) -> list[ScoreWork]:
        """Chunks that classifiers have to be asked about."""
        chunks = [*self.observed.chunks, *self._made()]
        asked = score_work(self.source.cache, candidates, chunks)
        choosing = [one for one in candidates if one.config.threshold.method != "given"]
        if self.validation is not None and choosing:
            asked += score_work(self.source.cache, choosing, self.validation.chunks)
        return asked

    def chunks_of(self, candidate: Candidate) -> int:
        """Number of chunks that a classifier is asked about in all."""
        chosen = candidate.config.threshold.method != "given" and self.validation is not None
        validation = len(self.validation.chunks) if chosen and self.validation else 0
        return len(self.observed.chunks) + len(self._made()) + validation

    def _made(self) -> list[SetChunk]:
        return [chunk for images in self.attributes for chunk in images.chunks]


def do_all(do: Callable[[Sequence[Piece]], Iterator[Any]], what: str, pieces: Sequence[Piece]) -> list[Any]:
    """Does all pieces and tells how far it is; returns their results."""
    results: list[Any] = []
    for result in do(pieces) if pieces else ():
        results.append(result)
        if len(results) == len(pieces) or len(results) % max(1, len(pieces) // 10) == 0:
            logger.info("%s: %d of %d", what, len(results), len(pieces))
    return results
