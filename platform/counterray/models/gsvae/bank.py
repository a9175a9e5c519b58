"""Pathology channels of training images, from which a patient with other findings is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from counterray.causal.mechanism import Values
from counterray.data.study import Batch
from counterray.models.generator import NoMatchError
from counterray.models.gsvae.network import GSVAENetwork

AGE_SCALE = 10.0
"""Difference of age that weighs as much as another sex or a typical other anatomy [years]."""

_DERIVED = "no_finding"
"""Follows from the other findings, so that changing one of those need not name it."""


class NoDonorError(NoMatchError):
    """No image of the bank shows exactly the findings asked for; the message lists those there are."""


@dataclass(frozen=True, kw_only=True)
class PathologyBank:
    """z^n of N training images, with what a match is made by.

    Attributes:
        pathology: ``[N, 1, h, w]`` posterior means of the pathology channel.
        anatomy: ``[N, A]`` summary of the identity channels: their posterior means, pooled to 4x4.
        findings: ``[N, F]`` in {0, 1}, NaN where not known.
        age: ``[N]`` [years], NaN where not known.
        sex: ``[N]`` codes, NaN where not known.
        finding_names: The F findings.
    """

    pathology: Tensor
    anatomy: Tensor
    findings: Tensor
    age: Tensor
    sex: Tensor
    finding_names: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def build(cls, network: GSVAENetwork, batches: Iterable[Batch]) -> PathologyBank:
        """A bank of all images of ``batches``, which should be of the training split.

        Raises:
            ValueError: If there is no batch.
        """
        rows: dict[str, list[Tensor]] = {
            name: [] for name in ("pathology", "anatomy", "findings", "age", "sex")
        }
        names: tuple[str, ...] = ()
        for batch in batches:
            mean, _ = network.encode(batch.image)
            unknown = batch.image.new_full((len(batch),), torch.nan)
            names = batch.finding_names
            rows["pathology"].append(mean[:, -1:])
            rows["anatomy"].append(_anatomy(mean[:, :-1]))
            rows["findings"].append(batch.findings.where(batch.finding_mask, torch.nan))
            rows["age"].append(batch.attributes.get("age", unknown))
            rows["sex"].append(batch.attributes.get("sex", unknown))
        if not names:
            raise ValueError("A pathology bank needs at least one batch of training images; there was none.")
        return cls(finding_names=names, **{name: torch.cat(values) for name, values in rows.items()})

    def pathology_for(self, target: Tensor, *, identity: Tensor, parents: Values) -> Tensor:
        """z^n ``[B, 1, h, w]`` of the best match of each row.

        A match shows exactly the target's findings. Among these it is nearest in the sum of: 1 where the
        sex differs, the squared difference of age in tens of years, and the squared distance of the
        anatomies relative to its mean over the bank. What is not known adds nothing.

        Args:
            target: ``[B, F]`` in {0, 1}, NaN where any value will do.
            identity: ``[B, n - 1, h, w]`` identity channels.
            parents: ``age`` and ``sex`` by name, ``[B]``, where known.

        Raises:
            NoDonorError: If no image has the findings of some row.
        """
        distance = self._distance(_anatomy(identity), parents)
        distance = distance.masked_fill(~self._matches(target), torch.inf)
        nearest = distance.min(dim=1)
        if nearest.values.isinf().any():
            row = int(nearest.values.isinf().nonzero()[0])
            raise NoDonorError(self._explain(target[row]))
        return self.pathology[nearest.indices]

    def _matches(self, target: Tensor) -> Tensor:
        """Whether image j shows the findings of row i, ``[B, N]``."""
        free = target.isnan()
        free[:, [name == _DERIVED for name in self.finding_names]] = True
        return ((target[:, None] == self.findings[None]) | free[:, None]).all(dim=2)

    def _distance(self, anatomy: Tensor, parents: Values) -> Tensor:
        """``[B, N]``; see `pathology_for`."""
        squared = torch.cdist(anatomy, self.anatomy).square()
        spread = 2 * (self.anatomy - self.anatomy.mean(dim=0)).square().mean(dim=0).sum()
        distance = squared / spread.clamp(min=torch.finfo(spread.dtype).tiny)
        unknown = anatomy.new_full((len(anatomy),), torch.nan)
        sex, age = parents.get("sex", unknown), parents.get("age", unknown)
        other_sex = (sex[:, None] != self.sex) & ~(sex[:, None] - self.sex).isnan()
        years = (age[:, None] - self.age).nan_to_num(nan=0.0)
        return distance + other_sex.to(distance) + (years / AGE_SCALE).square().to(distance)

    def _explain(self, target: Tensor) -> str:
        counts = Counter(self._describe(row) for row in self.findings)
        listing = "; ".join(f"{name} ({count})" for name, count in counts.most_common(20))
        return (
            f"No image of the bank ({len(self.findings)} images) shows exactly: {self._describe(target)}. "
            f"Combinations there are, most frequent first: {listing}. Ask for one of these, or build the "
            "bank from more images."
        )

    def _describe(self, findings: Tensor) -> str:
        pairs = [
            (name, float(value))
            for name, value in zip(self.finding_names, findings, strict=True)
            if name != _DERIVED
        ]
        present = [name for name, value in pairs if value == 1]
        unknown = [f"{name}?" for name, value in pairs if value != value]
        return " + ".join(present + unknown) or "none"


def findings_of(parents: Values, finding_names: Sequence[str], *, like: Tensor) -> Tensor:
    """The parents named ``finding.<name>`` as ``[B, F]`` of ``like``'s device, NaN where not given."""
    columns = [
        parents[f"finding.{name}"].to(like.device, torch.float32)
        if f"finding.{name}" in parents
        else torch.full((len(like),), torch.nan, device=like.device)
        for name in finding_names
    ]
    return torch.stack(columns, dim=1)


def _anatomy(identity: Tensor) -> Tensor:
    """Identity channels ``[B, n - 1, h, w]`` pooled to 4x4 and flattened; of n = 1, ``[B, 0]``."""
    if not identity.shape[1]:
        return identity.new_zeros(len(identity), 0)
    return functional.adaptive_avg_pool2d(identity, 4).flatten(1)
