"""How far each finding has got: which attempts count, and how many more to make."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

LOWEST_RATE = 0.05
"""Share of accepted attempts assumed at least, when the next round is planned."""


@dataclass
class Progress:
    """How far a finding has got.

    Attributes:
        finding: Such as ``finding.edema``.
        need: Studies that it needs.
        limit: Chunks of attempts that may be made for it.
        images: Attempts of a chunk.
        tables: Number of each chunk that is there to its rows of ``ATTEMPT_SCHEMA``.
    """

    finding: str
    need: int
    limit: int
    images: int
    tables: dict[int, pa.Table] = field(default_factory=dict)

    def outcome(self, seen: set[bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The accepted and the rejected attempts, in order, up to the last one that is needed.

        It depends on no chunk after that one, so that a job that was killed and run again chooses the same.

        Args:
            seen: Pixels of studies that are accepted already; those accepted here are added.
        """
        accepted: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for number in range(self.limit):
            if number not in self.tables:
                break
            for row in self.tables[number].to_pylist():
                if len(accepted) == self.need:
                    return accepted, rejected
                if row["reason"] is None and row["pixels"] in seen:
                    row |= {"reason": "duplicate", "detail": "the same pixels as another accepted image"}
                if row["reason"] is None:
                    seen.add(row["pixels"])
                    accepted.append({**row, "chunk": number})
                else:
                    rejected.append(row)
        return accepted, rejected

    def next_chunks(self, accepted: int) -> list[int]:
        """Numbers of the chunks to make next, so that about enough attempts succeed."""
        short = self.need - accepted
        if short <= 0:
            return []
        tried = self.images * len(self.tables)
        rate = max(LOWEST_RATE, accepted / tried) if tried else 1.0
        missing = [number for number in range(self.limit) if number not in self.tables]
        return missing[: math.ceil(short / rate / self.images)]
