"""The phantom's own causal model as a `Generator`: counterfactuals that are true by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from counterray.data.dataset import DatasetManifest
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import VOCABULARY, pathology_variables
from counterray.data.phantom.studies import parents_of
from counterray.data.study import Batch
from counterray.diffusion.sampling import OnStep
from counterray.evaluation.metric import UnscorableError
from counterray.models.generator import Abduction, Edit, EditError, Generator, by_edit

ATTRIBUTES = ("sex", "group", "site", "scanner")
"""Attributes with levels of the phantom's causal model."""

RANGES: Mapping[str, tuple[float, float]] = {"age": (0.0, 100.0)}
"""Its continuous ones: anatomy follows an age from 0 to 100 years, tissue from 20 to 90."""


class ExactGenerator(Generator):
    """Implements `Generator` for phantom data: abducts the true noise, intervenes, renders.

    Args:
        manifest: Of the phantom dataset.
        effect: ``direct`` holds findings and all other attributes, and lets anatomy follow; ``total`` lets
            all follow by the causal graph: with ``group`` also site, scanner and findings, with ``age`` also
            findings.

    Raises:
        UnscorableError: If the data are no phantom's.
    """

    def __init__(self, manifest: DatasetManifest, *, effect: Literal["direct", "total"] = "direct") -> None:
        if manifest.source != "phantom":
            raise UnscorableError(
                f"Exact counterfactuals are known of phantom data; these are of source {manifest.source!r}. "
                "Give the bundle of a generator."
            )
        self.image_size = manifest.image_size
        self.finding_names: tuple[str, ...] = ()
        self.levels: Mapping[str, tuple[str, ...]] = {
            name: tuple(manifest.vocabulary[name]) for name in ATTRIBUTES if name in manifest.vocabulary
        }
        self.ranges = RANGES
        self.seeded = False
        self._effect = effect
        self._model = exact_scm(manifest.image_size)
        self._vocabulary = {**VOCABULARY, **manifest.vocabulary}

    def abduct(self, batch: Batch, edit: Edit | None = None) -> Abduction:
        """The images themselves: the noise behind them, two seeds, is among their patients' measurements.

        It is checked in `predict` that both belong together.
        """
        return Abduction(patients=batch.without_pixels(), tensors={"image": batch.image.cpu()})

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
            EditError: If an edit is by words, severity, donor or findings.
            ValueError: If the images are not the phantom's own.
        """
        made = torch.empty_like(abduction.tensors["image"], dtype=torch.float32)
        for edit, rows in by_edit(edits):
            if edit.prompt or edit.severity or donor is not None or not edit.do:
                there = ", ".join([*self.levels, *self.ranges])
                raise EditError(f"The exact generator sets attributes ({there}) by do, such as sex=male.")
            made[rows] = self._counterfactual(abduction.select(rows), edit)
        return made

    def _counterfactual(self, abduction: Abduction, edit: Edit) -> Tensor:
        codes = edit.require(self.finding_names, self.levels, self.ranges).codes(self.levels, self.ranges)
        observed = parents_of(abduction.patients, self._vocabulary, image_size=self.image_size)
        held = (*ATTRIBUTES, *pathology_variables()) if self._effect == "direct" else ()
        do = {name: observed[name] for name in held}
        for name, value in codes.items():
            if name in self.levels:  # its code among the phantom's own
                value = VOCABULARY[name].index(self.levels[name][int(value)])
            do[name] = torch.full((len(abduction),), float(value), dtype=torch.float64)
        known = {"image": abduction.tensors["image"], **observed}
        return self._model.counterfactual(known, do)["image"].float()
