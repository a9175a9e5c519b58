"""The renderer: the phantom's image mechanism, whose noise is known, so that counterfactuals are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from counterray.causal.mechanism import Values
from counterray.causal.scm import SCM
from counterray.data.phantom.acquisition import acquire
from counterray.data.phantom.anatomy import Scalars, build_anatomy
from counterray.data.phantom.lesions import Film, draw_lesions
from counterray.data.phantom.randomness import SEED_LIMIT
from counterray.data.phantom.scm import attribute_mechanisms, build_graph
from counterray.data.phantom.tissue import draw_bones, draw_soft_tissue, draw_vessels

MASK_NAMES = ("heart", "left_lung", "lesion", "right_lung")
"""Masks of every phantom study. Lungs and heart overlap, and both are the shape below the lesions."""

_SEEDS = ("patient_seed", "noise_seed")


@dataclass(frozen=True)
class Rendering:
    """A drawn study.

    Attributes:
        grey: ``[S, S]`` uint8 grey levels.
        masks: Each of `MASK_NAMES` to ``[S, S]`` uint8 in {0, 1}.
        coverage: ``left_lung``, ``right_lung`` and ``heart`` to ``[S, S]`` soft coverage in [0, 1].
    """

    grey: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.uint8]]
    coverage: Mapping[str, NDArray[np.float32]]


def render_study(study: Scalars, image_size: int) -> Rendering:
    """Draws one study; the same bits on every machine and in every batch.

    Args:
        study: Every parent of the image to its value, areas in px^2 of ``image_size``.
        image_size: Edge of the image [px].
    """
    anatomy = build_anatomy(image_size, study)
    film = Film(
        tissue=draw_soft_tissue(anatomy, study),
        vessels=draw_vessels(anatomy, study),
        lesion=np.zeros((image_size, image_size), dtype=np.bool_),
    )
    draw_lesions(film, anatomy, study)
    # Where a film is bright already, bone adds less to it.
    bones = draw_bones(anatomy, study) * (1.3 - 1.2 * film.tissue)
    grey = acquire(film.tissue + film.vessels + bones, anatomy.grid, study)
    left, right = anatomy.lungs
    masks = {
        "heart": anatomy.heart_mask,
        "left_lung": left.mask,
        "lesion": film.lesion,
        "right_lung": right.mask,
    }
    return Rendering(
        grey=grey,
        masks={name: mask.astype(np.uint8) for name, mask in masks.items()},
        coverage={"heart": anatomy.heart, "left_lung": left.coverage, "right_lung": right.coverage},
    )


def to_model_range(grey: NDArray[np.uint8]) -> Tensor:
    """Grey levels ``[B, S, S]`` as an image tensor ``[B, 1, S, S]`` in [-1, 1]."""
    return torch.from_numpy(np.array(grey)).unsqueeze(1).float() / 127.5 - 1.0


class Renderer:
    """The exact image mechanism: ``image = render(parents, noise)`` with the noise named by two seeds.

    Its composition, reversibility and ground-truth errors are 0, so it is the yardstick of every learned
    mechanism.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        """Edge of the images [px]."""
        self._parents = build_graph(image_size).parents_of("image")

    def loss(self, value: Tensor, parents: Values) -> Tensor:
        """0 where ``value`` is what the parents and their seeds render, infinity elsewhere, ``[B]``."""
        expected = self._render(parents)
        same = (_grey_levels(value) == _grey_levels(expected)).flatten(1).all(dim=1)
        return torch.where(same, 0.0, torch.inf)

    def abduct(self, value: Tensor, parents: Values) -> Tensor:
        """The true noise: the seeds in ``parents``, once they are shown to render ``value``.

        Args:
            value: ``[B, 1, S, S]`` phantom images in [-1, 1].
            parents: Every parent of the image to ``[B]``; see `build_graph`.

        Returns:
            ``[B, 2]`` patient and noise seeds.

        Raises:
            ValueError: If an image is not what its parents render.
        """
        wrong = self.loss(value, parents) > 0
        if bool(wrong.any()):
            rows = wrong.nonzero()[:, 0].tolist()
            raise ValueError(
                f"{len(rows)} of {len(value)} images (first row: {rows[0]}) are not what their parents and "
                f"seeds render at {self.image_size} px; the exact noise is known only for unchanged phantom "
                "images, given with all their own measurements."
            )
        return torch.stack([parents[name].double() for name in _SEEDS], dim=1)

    def predict(self, noise: Tensor, parents: Values) -> Tensor:
        """The image ``[B, 1, S, S]`` in [-1, 1] of ``parents`` under ``noise``.

        Seeds in ``parents`` are a record of the noise, not a cause of their own: they are not read.
        """
        return self._render({**parents, _SEEDS[0]: noise[:, 0], _SEEDS[1]: noise[:, 1]})

    def sample(self, parents: Values, generator: Generator) -> Tensor:
        """An image of ``parents`` with another anatomy and other noise, ``[B, 1, S, S]`` in [-1, 1]."""
        rows = len(parents["sex"])
        return self.predict(torch.randint(SEED_LIMIT, (rows, 2), generator=generator).double(), parents)

    def masks(self, parents: Values) -> dict[str, Tensor]:
        """The true masks of ``parents``: each of `MASK_NAMES` to ``[B, 1, S, S]`` float in {0, 1}."""
        drawn = [render_study(study, self.image_size) for study in self._studies(parents)]
        return {
            name: torch.from_numpy(np.stack([item.masks[name] for item in drawn])).unsqueeze(1).float()
            for name in MASK_NAMES
        }

    def _render(self, parents: Values) -> Tensor:
        drawn = [render_study(study, self.image_size).grey for study in self._studies(parents)]
        return to_model_range(np.stack(drawn))

    def _studies(self, parents: Values) -> list[dict[str, float]]:
        missing = [name for name in self._parents if name not in parents]
        if missing:
            raise ValueError(f"The renderer needs all parents of the image; missing: {', '.join(missing)}.")
        columns = {name: parents[name].tolist() for name in self._parents}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _grey_levels(image: Tensor) -> Tensor:
    """Grey levels of images in [-1, 1]; -1 where a value is no grey level but for float32 rounding."""
    levels = ((image.float() + 1.0) * 127.5).cpu()
    whole = levels.round()
    return torch.where((levels - whole).abs() < 1e-3, whole, -1.0)


def exact_scm(image_size: int) -> SCM:
    """The whole phantom as a structural causal model: attribute mechanisms and the renderer.

    ``exact_scm(64).counterfactual({"image": batch.image, **parents_of(batch)}, do)`` is the exact
    counterfactual.
    """
    mechanisms = {**attribute_mechanisms(image_size), "image": Renderer(image_size)}
    return SCM(build_graph(image_size), mechanisms)
