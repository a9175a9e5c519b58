"""The counterfactual engine: abduct the noise of what was seen, intervene, predict what would have been."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from counterray.causal.graph import CausalGraph, GraphError
from counterray.causal.mechanism import Mechanism, Noise, Values

Intervention = Mapping[str, Tensor | float]
"""Variable name to the value it is set to: ``[B, ...]``, or one number for every row."""


@dataclass(frozen=True)
class SCM:
    """A structural causal model: a graph and a mechanism for each variable that has parents.

    Reference: Pearl, Causality (2009), section 7.1; Pawlowski et al., 2020,
    https://arxiv.org/abs/2006.06485, section 3.

    Attributes:
        graph: The causal graph.
        mechanisms: Variable to its structural assignment. Roots need none: they are their own noise.

    Raises:
        GraphError: If a mechanism has no variable, or a variable with parents has no mechanism.
    """

    graph: CausalGraph
    mechanisms: Mapping[str, Mechanism]

    def __post_init__(self) -> None:
        self.graph.require(self.mechanisms)
        bare = [n for n in self.graph.names if self.graph.parents_of(n) and n not in self.mechanisms]
        if bare:
            raise GraphError(f"No mechanism for {', '.join(bare)}; every variable with parents needs one.")

    def abduct(self, observed: Values, names: Collection[str] | None = None) -> dict[str, Noise]:
        """The noise behind observed values.

        Args:
            observed: Variable to ``[B, ...]``.
            names: Variables whose noise is wanted; by default all observed ones that have a mechanism.

        Raises:
            GraphError: If the value of a wanted variable or of one of its parents is missing.
        """
        wanted = set(observed) if names is None else set(names)
        self.graph.require(wanted)
        noise: dict[str, Noise] = {}
        for name in self.graph.names:
            if name in wanted and name in self.mechanisms:
                self._require_values(observed, (name,), needed_by=name)
                noise[name] = self.mechanisms[name].abduct(observed[name], self._parents(observed, name))
        return noise

    def predict(self, observed: Values, noise: Mapping[str, Noise], do: Intervention) -> dict[str, Tensor]:
        """The values under an intervention, with the given noise.

        Args:
            observed: Variable to ``[B, ...]``; descendants of ``do`` that are not here are left out.
            noise: Noise of the observed descendants of ``do``, from `abduct`.
            do: The intervention.

        Returns:
            Variable to value: intervened variables as set, their descendants by their mechanisms, and every
            other variable exactly as observed (the same tensor).
        """
        setting = self._as_tensors(observed, do)
        affected = self.graph.affected(setting)
        values: dict[str, Tensor] = {}
        for name in self.graph.names:
            if name in setting:
                values[name] = setting[name]
            elif name not in observed:
                continue
            elif name in affected:
                values[name] = self.mechanisms[name].predict(noise[name], self._parents(values, name))
            else:
                values[name] = observed[name]
        return values

    def counterfactual(self, observed: Values, do: Intervention) -> dict[str, Tensor]:
        """What would have been seen under ``do``: abduct, intervene, predict.

        Args:
            observed: Variable to ``[B, ...]``, for instance ``image`` and all its parents.
            do: The intervention, for instance ``{"severity.pleural_effusion": 0.8}``.

        Raises:
            GraphError: If a variable is unknown, or a value needed for abduction is missing.
        """
        self.graph.require(observed)
        reached = self.graph.affected(do) - set(do)
        noise = self.abduct(observed, reached.intersection(observed))
        return self.predict(observed, noise, do)

    def _parents(self, values: Values, name: str) -> dict[str, Tensor]:
        parents = self.graph.parents_of(name)
        self._require_values(values, parents, needed_by=name)
        return {parent: values[parent] for parent in parents}

    def _require_values(self, values: Values, names: Collection[str], *, needed_by: str) -> None:
        missing = [name for name in names if name not in values]
        if missing:
            raise GraphError(f"Variable {needed_by!r} needs the value of {', '.join(missing)}.")

    def _as_tensors(self, observed: Values, do: Intervention) -> dict[str, Tensor]:
        self.graph.require(do)
        if not observed:
            raise GraphError("An intervention needs at least one observed variable.")
        rows = len(next(iter(observed.values())))
        setting = {}
        for name, value in do.items():
            like = observed.get(name, next(iter(observed.values())))
            tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            setting[name] = tensor.expand(rows) if tensor.ndim == 0 else tensor
            if len(setting[name]) != rows:
                raise GraphError(
                    f"do({name}) has {len(setting[name])} rows, but {rows} were observed; give one number or "
                    f"{rows} values."
                )
        return setting
