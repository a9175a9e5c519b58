"""`gsvae` as a `Generator`: pathology from a donor's image, or from the best match among training images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from counterray.bundle import Bundle
from counterray.data.study import Batch
from counterray.diffusion.sampling import OnStep
from counterray.models.generator import (
    Abduction,
    Edit,
    EditError,
    Generator,
    by_edit,
    edited_findings,
    generation_device,
    parents_of_findings,
)
from counterray.models.gsvae.bank import PathologyBank, findings_of
from counterray.models.gsvae.mechanism import GSVAEMechanism, GSVAENoise
from counterray.models.gsvae.stages import GSVAEConfig, load


class GSVAEGenerator(Generator):
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

    def abduct(self, batch: Batch, edit: Edit | None = None) -> Abduction:
        """Identity and pathology channels; see `Generator`."""
        noise = self._mechanism(None).abduct(batch.image.to(self.device), {})
        tensors = {"identity": noise.identity, "pathology": noise.pathology}
        return Abduction(patients=batch.without_pixels(), tensors=tensors)

    def predict(
        self,
        abduction: Abduction,
        edits: Sequence[Edit],
        *,
        seeds: Tensor,
        donor: Abduction | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]``; see `Generator`.

        Raises:
            EditError: If an edit is by words, or names a severity: the pathology channels of training images
                are found by their labels, which have none.
            NoDonorError: If no training image shows exactly the findings that some row asks for.
        """
        abduction = abduction.to(self.device)
        identity, pathology = abduction.tensors["identity"], abduction.tensors["pathology"]
        if donor is not None:
            pathology = donor.to(self.device).tensors["pathology"]
            noise = GSVAENoise(identity=identity, pathology=pathology, findings=None)
            return self._mechanism(None).predict(noise, {}).cpu()
        target = self._target(abduction.patients, edits)
        known = abduction.patients.findings.where(abduction.patients.finding_mask, torch.nan)
        parents = parents_of_findings(abduction.patients, known)
        findings = findings_of(parents, self.finding_names, like=identity)
        noise = GSVAENoise(identity=identity, pathology=pathology, findings=findings)
        parents = parents_of_findings(abduction.patients, target)
        return self._mechanism(self._read_bank()).predict(noise, parents).cpu()

    def _target(self, patients: Batch, edits: Sequence[Edit]) -> Tensor:
        """The findings that each row is to show, ``[B, F]``."""
        target = torch.empty_like(patients.findings)
        for edit, rows in by_edit(edits):
            if edit.prompt or edit.severity:
                raise EditError(
                    "gsvae edits by findings (do) or by a donor, not by words or severity; train "
                    "pathology_ldm on it for those."
                )
            target[rows] = edited_findings(patients.select(rows), edit.require(self.finding_names))
        return target

    def _read_bank(self) -> PathologyBank:
        if self._bank is None:
            self._bank = PathologyBank.build(
                self.network, (batch.to(self.device) for batch in self._training)
            )
        return self._bank

    def _mechanism(self, bank: PathologyBank | None) -> GSVAEMechanism:
        return GSVAEMechanism(self.network, self.config, finding_names=self.finding_names, bank=bank)
