"""The causal graph: variables with one normalisation each, their parents, what an intervention reaches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from counterray.causal.mechanism import Values

Kind = Literal["continuous", "binary", "categorical", "image"]


class GraphError(ValueError):
    """A graph, or a use of it, that is not valid; the message names the variable and what is allowed."""


@dataclass(frozen=True)
class Variable:
    """One variable of a causal graph.

    Attributes:
        name: As in a batch's attributes and measurements.
        kind: ``binary`` values are 0 or 1, ``categorical`` ones codes 0 to ``size`` - 1.
        size: Number of categories of a categorical variable; 1 for every other kind.
        mean: Mean of a continuous variable, in its unit.
        sd: Standard deviation of a continuous variable, in its unit. Mean and sd are the only normalisation
            of this variable: every mechanism that needs one reads it through `CausalGraph.encode`.
    """

    name: str
    kind: Kind
    size: int = 1
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "categorical" and self.size < 2:
            raise GraphError(f"Variable {self.name!r}: size {self.size} is below the 2 categories needed.")
        if self.kind != "categorical" and self.size != 1:
            raise GraphError(f"Variable {self.name!r}: size {self.size} is for categorical only; leave it 1.")
        if not self.sd > 0:
            raise GraphError(f"Variable {self.name!r}: sd {self.sd} must be above 0.")


@dataclass(frozen=True)
class CausalGraph:
    """A directed acyclic graph of variables.

    Attributes:
        variables: In topological order: parents come before their children.
        parents: Variable to its parents' names; a variable that is not listed is a root.

    Raises:
        GraphError: If a name is used twice, a parent is unknown, or a parent comes after its child.
    """

    variables: tuple[Variable, ...]
    parents: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for variable in self.variables:
            if variable.name in seen:
                raise GraphError(f"Variable {variable.name!r} is listed twice; names must be unique.")
            for parent in self.parents_of(variable.name):
                self._check_parent(variable.name, parent, seen)
            seen.add(variable.name)
        self.require(self.parents)

    def _check_parent(self, child: str, parent: str, seen: Collection[str]) -> None:
        if parent in seen:
            return
        if parent not in self._by_name:
            raise GraphError(f"Variable {child!r} has the unknown parent {parent!r}. Known: {self.names}.")
        raise GraphError(f"Variable {child!r} comes before its parent {parent!r}; list parents first.")

    @cached_property
    def _by_name(self) -> dict[str, Variable]:
        return {variable.name: variable for variable in self.variables}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all variables in topological order."""
        return tuple(variable.name for variable in self.variables)

    def variable(self, name: str) -> Variable:
        """The variable called ``name``."""
        self.require((name,))
        return self._by_name[name]

    def parents_of(self, name: str) -> tuple[str, ...]:
        """Names of a variable's parents; empty for a root."""
        return tuple(self.parents.get(name, ()))

    def require(self, names: Collection[str]) -> None:
        """Raises `GraphError` unless every name is a variable of this graph."""
        unknown = sorted(set(names) - set(self._by_name))
        if unknown:
            raise GraphError(f"Unknown variable {', '.join(unknown)}. Known: {', '.join(self.names)}.")

    def affected(self, do: Collection[str]) -> frozenset[str]:
        """The intervened variables and all their descendants."""
        self.require(do)
        reached = set(do)
        for name in self.names:
            if reached.intersection(self.parents_of(name)):
                reached.add(name)
        return frozenset(reached)

    def encode(self, values: Values, names: Sequence[str]) -> Tensor:
        """Normalises variables for a network, one block of columns a variable.

        Continuous: ``(value - mean) / sd``. Binary: {0, 1} to {-1, 1}. Categorical: one-hot.

        Args:
            values: Variable name to ``[B]``.
            names: Variables to encode, in the order of their columns.

        Returns:
            ``[B, D]`` in torch's default dtype; D is the sum of the variables' sizes.

        Raises:
            GraphError: If a name is unknown, has no value, is an image, or a value is NaN or no valid code.
        """
        self.require(names)
        missing = sorted(set(names) - set(values))
        if missing:
            raise GraphError(f"No value for {', '.join(missing)}; given: {', '.join(sorted(values))}.")
        return torch.cat([self._encode_one(self._by_name[name], values[name]) for name in names], dim=1)

    def _encode_one(self, variable: Variable, value: Tensor) -> Tensor:
        dtype = torch.get_default_dtype()
        if variable.kind == "image":
            raise GraphError(f"Variable {variable.name!r} is an image; images are not encoded as a vector.")
        if variable.kind == "continuous":
            if bool(value.isnan().any()):
                raise GraphError(
                    f"Variable {variable.name!r} has NaN (unknown) values; leave those rows out."
                )
            return ((value.double() - variable.mean) / variable.sd).to(dtype)[:, None]
        size = 2 if variable.kind == "binary" else variable.size
        one_hot = (value[:, None] == torch.arange(size, device=value.device)).to(dtype)
        if not bool(one_hot.any(dim=1).all()):
            raise GraphError(
                f"Variable {variable.name!r} has a value that is none of its codes 0 to {size - 1}; "
                "leave rows with unknown values out."
            )
        return 2 * one_hot[:, 1:] - 1 if variable.kind == "binary" else one_hot
