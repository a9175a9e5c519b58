"""What is evaluated: counterfactual images with what they were made from; and who makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from counterray.causal.mechanism import Mechanism, Noise, Values
from counterray.data.study import Batch
from counterray.evaluation.metric import UnscorableError


class Editor(Protocol):
    """Makes counterfactuals: these patients, had they had those patients' pathology."""

    def __call__(self, image: Tensor, source: Batch, target: Batch, /) -> Tensor:
        """The image under the target's parents.

        Args:
            image: ``[B, 1, H, W]`` in [-1, 1]: images of the source's patients under the source's parents.
                Not always ``source.image``: undoing an edit starts from a counterfactual.
            source: What the images' parents are now.
            target: What they are set to; equal to ``source`` for the null intervention.

        Returns:
            ``[B, 1, H, W]`` in [-1, 1].
        """
        ...


def editor(mechanism: Mechanism, parents: Callable[[Batch], Values]) -> Editor:
    """The editor of an image mechanism: abduct under the source's parents, predict under the target's.

    Args:
        mechanism: The image mechanism.
        parents: Reads from a batch what the mechanism calls its parents.
    """

    @torch.no_grad()
    def edit(image: Tensor, source: Batch, target: Batch) -> Tensor:
        return mechanism.predict(mechanism.abduct(image, parents(source)), parents(target))

    return edit


class PathologySwap(Protocol):
    """An image mechanism whose noise can take the pathology that another image shows."""

    def abduct(self, value: Tensor, parents: Values) -> Noise:
        """The noise of ``value``, its own pathology included."""
        ...

    def with_pathology(self, noise: Noise, donor: Tensor) -> Noise:
        """The same patients' noise with the pathology that ``donor`` shows."""
        ...

    def predict(self, noise: Noise, parents: Values) -> Tensor:
        """The images of ``noise``."""
        ...


def swap_editor(mechanism: PathologySwap) -> Editor:
    """The editor of a mechanism that reads the pathology from the target's images, not from its labels."""

    @torch.no_grad()
    def edit(image: Tensor, source: Batch, target: Batch) -> Tensor:
        noise = mechanism.abduct(image, {})
        # The null intervention keeps the pathology that this very image shows: taking it from the source's
        # image again would hide what repeated cycles lose.
        if target is not source:
            noise = mechanism.with_pathology(noise, target.image)
        return mechanism.predict(noise, {})

    return edit


@dataclass(frozen=True, kw_only=True)
class Counterfactuals:
    """B counterfactuals: row b is patient ``source[b]`` with the pathology, or attributes, of ``donor[b]``.

    Attributes:
        source: The patients, as they were seen.
        donor: Whose pathology they were given; its findings are the target. Where attributes are set, the
            patients themselves with these attributes.
        image: The counterfactuals, ``[B, 1, H, W]`` in [-1, 1].
        reconstruction: The same generator's null intervention on the sources, as ``image``.
        exact: The true counterfactuals, as ``image``, where they are known.
        attributes: Attributes that were set; where empty, it was pathology.
    """

    source: Batch
    donor: Batch
    image: Tensor
    reconstruction: Tensor
    exact: Tensor | None = None
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.source.finding_names != self.donor.finding_names:
            raise ValueError(
                f"Source and donor name different findings: {', '.join(self.source.finding_names)} and "
                f"{', '.join(self.donor.finding_names)}. Read both from one dataset."
            )
        images = {"image": self.image, "reconstruction": self.reconstruction, "donor": self.donor.image}
        if self.exact is not None:
            images["exact"] = self.exact
        for name, value in images.items():
            if value.shape != self.source.image.shape:
                raise ValueError(
                    f"Counterfactuals: {name} has shape {tuple(value.shape)} but the source images have "
                    f"{tuple(self.source.image.shape)}."
                )
            if not torch.isfinite(value).all():
                wrong = int((~torch.isfinite(value)).flatten(1).any(dim=1).sum())
                raise UnscorableError(
                    f"Counterfactuals: {wrong} of {len(value)} images in {name} are not finite."
                )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def asked(self) -> Batch:
        """The counterfactuals' patients with the findings and attributes that were asked for."""
        return replace(
            self.source,
            image=self.image,
            attributes=self.donor.attributes if self.attributes else self.source.attributes,
            findings=self.donor.findings,
            finding_mask=self.donor.finding_mask,
            measurements={},
            masks={},
            reports=(),
            prompts=(),
            tensors={},
        )

    @property
    def known(self) -> Tensor:
        """Where both the source's and the target's label are known, ``[B, F]`` bool."""
        return self.source.finding_mask.bool() & self.donor.finding_mask.bool()

    @property
    def changed(self) -> Tensor:
        """Findings that the intervention turns on or off, ``[B, F]`` bool."""
        return self.known & ((self.source.findings > 0.5) != (self.donor.findings > 0.5))


def patients(batch: Batch) -> tuple[str, ...]:
    """The images' patients.

    Raises:
        ValueError: If the batch does not carry them: intervals would be too narrow without.
    """
    if len(batch.patient_ids) != len(batch):
        raise ValueError(
            f"A batch of {len(batch)} images names {len(batch.patient_ids)} patients; evaluation needs one "
            "each, since its intervals resample patients."
        )
    return batch.patient_ids


def pieces(rows: int, size: int) -> Iterator[Tensor]:
    """Row numbers in pieces of at most ``size``, so that a large test split fits into memory."""
    for start in range(0, rows, size):
        yield torch.arange(start, min(start + size, rows))
