"""`gsvae` as a `Generator`: pathology from a donor's image, or from the best match among training images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from counterray.bundle import Bundle
from counterray.data.study import Batch
from counterray.models.generator import (
    Edit,
    EditError,
    edited_findings,
    generation_device,
    parents_of_findings,
)
from counterray.models.gsvae.bank import PathologyBank
from counterray.models.gsvae.mechanism import GSVAEMechanism
from counterray.models.gsvae.stages import GSVAEConfig, load


class GSVAEGenerator:
    """Implements `Generator` for a `gsvae` bundle.

    Args:
        bundle: A trained `gsvae`.
        training: Batches of the training split, whose pathology channels serve edits by findings. They are
            read once, when the first such edit is made.
    """

    def __init__(self, bundle: Bundle, training: Iterable[Batch] = ()) -> None:
        self.seeded = False
        self.device = generation_device()
        self.network = load(bundle).to(self.device)
        self.config = GSVAEConfig.model_validate(bundle.metadata["config"])
        self.image_size: int = self.network.image_size
        self.finding_names: tuple[str, ...] = tuple(bundle.metadata["finding_names"])
        self.levels: Mapping[str, tuple[str, ...]] = {}
        self.ranges: Mapping[str, tuple[float, float]] = {}
        self._training = training
        self._bank: PathologyBank | None = None

    def edit(self, batch: Batch, edit: Edit, *, seeds: Tensor, donor: Batch | None = None) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]``; see `Generator`.

        Raises:
            EditError: If the edit is by words, or names a severity: the pathology channels of training images
                are found by their labels, which have none.
            NoDonorError: If no training image shows exactly the findings that some row asks for.
        """
        batch = batch.to(self.device)
        if donor is not None:
            donor = donor.to(self.device)
            mechanism = self._mechanism(None)
            noise = mechanism.abduct(batch.image, {})
            return mechanism.predict(mechanism.with_pathology(noise, donor.image), {}).cpu()
        if edit.prompt or edit.severity:
            raise EditError(
                "gsvae edits by findings (do) or by a donor, not by words or severity; train pathology_ldm "
                "on it for those."
            )
        mechanism = self._mechanism(self._read_bank())
        known = batch.findings.where(batch.finding_mask, torch.nan)
        noise = mechanism.abduct(batch.image, parents_of_findings(batch, known))
        target = edited_findings(batch, edit.require(self.finding_names))
        return mechanism.predict(noise, parents_of_findings(batch, target)).cpu()

    def _read_bank(self) -> PathologyBank:
        if self._bank is None:
            self._bank = PathologyBank.build(
                self.network, (batch.to(self.device) for batch in self._training)
            )
        return self._bank

    def _mechanism(self, bank: PathologyBank | None) -> GSVAEMechanism:
        return GSVAEMechanism(self.network, self.config, finding_names=self.finding_names, bank=bank)
