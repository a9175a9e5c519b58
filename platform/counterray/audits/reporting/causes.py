"""The causal graph as its user states it: by which paths the attribute may reach the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from counterray.audits.errors import AuditError


@dataclass(frozen=True)
class CausalPath:
    """A directed path from the attribute to the outcome.

    Attributes:
        nodes: Variables on it, the attribute first and the outcome last.
        reason: Why the attribute may act by it; ``None`` where nobody says that it may.
    """

    nodes: tuple[str, ...]
    reason: str | None

    @property
    def legitimate(self) -> bool:
        """Whether it was declared legitimate."""
        return self.reason is not None

    @property
    def direct(self) -> bool:
        """Whether nothing lies between: the only path that a direct effect has."""
        return len(self.nodes) == 2

    def __str__(self) -> str:
        return " → ".join(node.replace("_", " ") for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class CausalStatement:
    """A causal graph and what its user holds to be legitimate.

    Attributes:
        parents: Variable to its direct causes, as `CausalGraph.parents` has them; others have none.
        legitimate: Variable to the reason why the attribute may act through it, such as ``severity.edema``:
            "the disease itself". A path through at least one of them is legitimate.
        outcome: What classifiers see.

    Raises:
        AuditError: If the graph has a cycle, or a legitimate variable is not in it.
    """

    parents: Mapping[str, tuple[str, ...]]
    legitimate: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "image"

    def __post_init__(self) -> None:
        unknown = sorted({*self.legitimate, self.outcome} - self._names)
        if unknown:
            raise AuditError(
                f"The causal graph has no variable {unknown[0]!r}; it has {', '.join(sorted(self._names))}."
            )
        for name in sorted(self._names):
            self._refuse_cycle(name)

    def paths(self, attribute: str) -> list[CausalPath]:
        """All directed paths from the attribute to the outcome, the shortest first.

        Raises:
            AuditError: If the attribute is not in the graph.
        """
        if attribute not in self._names:
            raise AuditError(
                f"Attribute {attribute!r} is not in the causal graph; it has "
                f"{', '.join(sorted(self._names))}."
            )
        found = [(*nodes, self.outcome) for nodes in self._ways(self.outcome, attribute)]
        return [CausalPath(nodes, self._reason(nodes)) for nodes in sorted(found, key=lambda n: (len(n), n))]

    def as_json(self, attribute: str) -> dict[str, Any]:
        """Plain values: the graph and the attribute's paths."""
        return {
            "parents": {name: list(causes) for name, causes in self.parents.items()},
            "outcome": self.outcome,
            "legitimate": dict(self.legitimate),
            "paths": [
                {"nodes": list(path.nodes), "legitimate": path.legitimate, "reason": path.reason}
                for path in self.paths(attribute)
            ],
        }

    @property
    def _names(self) -> set[str]:
        return {*self.parents, *(cause for causes in self.parents.values() for cause in causes)}

    def _ways(self, node: str, attribute: str) -> Iterator[tuple[str, ...]]:
        """Paths from the attribute to the parents of ``node``, without ``node``."""
        for cause in self.parents.get(node, ()):
            if cause == attribute:
                yield (attribute,)
            else:
                yield from ((*way, cause) for way in self._ways(cause, attribute))

    def _reason(self, nodes: tuple[str, ...]) -> str | None:
        return next((self.legitimate[node] for node in nodes[1:-1] if node in self.legitimate), None)

    def _refuse_cycle(self, start: str) -> None:
        reached, waiting = set[str](), list(self.parents.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node == start:
                raise AuditError(
                    f"The causal graph has a cycle through {start!r}; an effect has no cause later."
                )
            if node not in reached:
                reached.add(node)
                waiting += self.parents.get(node, ())
