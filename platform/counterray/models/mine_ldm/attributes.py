"""The attributes that a generator sets, and their levels as numbers.

Letters: B images, m attributes, K_j levels of attribute j, K = Σ K_j.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from counterray.causal.mechanism import Values
from counterray.data.dataset import DatasetInfo
from counterray.models.predictors.common import chosen


@dataclass(frozen=True)
class AttributeSpace:
    """Categorical attributes with their levels.

    Attributes:
        levels: Attribute to its levels, in the order of their codes; attributes by name, as JSON keeps them:
            networks depend on the order.
    """

    levels: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, names: Sequence[str], data: DatasetInfo) -> AttributeSpace:
        """The named attributes of a dataset.

        Raises:
            ValueError: If the dataset lacks one, or has one level of it: there is nothing to set.
        """
        varied = [name for name, values in data.vocabulary.items() if len(values) > 1]
        names = chosen(names, varied, setting="attributes", what="attributes with two levels or more")
        return cls({name: tuple(data.vocabulary[name]) for name in sorted(names)})

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> AttributeSpace:
        """The space that `described` described."""
        return cls({name: tuple(values) for name, values in sorted(metadata["levels"].items())})

    def described(self) -> dict[str, Any]:
        """As metadata of a bundle."""
        return {"levels": {name: list(values) for name, values in self.levels.items()}}

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_j of each attribute."""
        return tuple(len(values) for values in self.levels.values())

    def codes(self, values: Values, *, like: Tensor) -> Tensor:
        """Codes ``[B, m]`` float of the attributes, NaN where not known or not given.

        Args:
            values: Attribute to codes ``[B]``; what is no attribute of this space is not read.
            like: ``[B, ...]`` on the device to compute on.

        Raises:
            ValueError: If a code is none of an attribute's.
        """
        unknown = torch.full((len(like),), torch.nan, device=like.device)
        columns = []
        for name, levels in self.levels.items():
            column = values[name].to(like.device, torch.float32) if name in values else unknown
            wrong = ~column.isnan() & ((column < 0) | (column >= len(levels)) | (column != column.round()))
            if wrong.any():
                raise ValueError(
                    f"{name} = {float(column[wrong][0]):g} is no code of its levels, which are 0 to "
                    f"{len(levels) - 1}: {', '.join(levels)}."
                )
            columns.append(column)
        return torch.stack(columns, dim=1)

    def one_hot(self, codes: Tensor) -> Tensor:
        """Levels as ``[B, K]`` in {0, 1}; all 0 for an attribute that is not known."""
        parts = []
        for column, size in zip(codes.unbind(dim=1), self.sizes, strict=True):
            known = ~column.isnan()
            levels = functional.one_hot(column.nan_to_num(0.0).long(), size).to(torch.float32)
            parts.append(levels * known[:, None])
        return torch.cat(parts, dim=1)


def as_maps(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors ``[B, K]`` as maps ``[B, K, h, w]``, of the size and type of ``like`` ``[B, C, h, w]``."""
    return vectors.to(like.dtype)[:, :, None, None].expand(-1, -1, *like.shape[2:])
