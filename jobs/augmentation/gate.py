"""What keeps copies of training images out: distances of features, with a threshold that real images set."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterray.bundle import Bundle
from counterray.data.batching import read_batches
from counterray.data.dataset import Dataset
from counterray.evaluation.features import extract_features, feature_judge
from counterray.evaluation.memorisation import calibrate_gate
from counterray.storage import Location
from jobs.generation.request import GenerationError

GATE_FILE = "gate.npz"


@dataclass(frozen=True)
class Gate:
    """Tells images that are nearly an image of another patient.

    The images of the patient that an image was made from are left out: it is to resemble those.

    Attributes:
        features: ``[N, D]`` of the training images.
        patients: ``[N]`` their patients.
        threshold: Distance below which an image is a near copy; 0 lets every image pass.
    """

    features: Tensor
    patients: NDArray[np.str_]
    threshold: float

    def distance(self, features: Tensor, patients: tuple[str, ...]) -> Tensor:
        """Distance ``[B]`` of each image's features ``[B, D]`` to the nearest of another patient."""
        if self.threshold == 0:
            return torch.full((len(patients),), torch.inf, dtype=torch.float64)
        own = torch.from_numpy(np.array(patients)[:, None] == self.patients[None])
        every = torch.cdist(
            features.double(), self.features.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        return every.masked_fill(own, torch.inf).min(dim=1).values


def prepare_gate(
    dataset: Dataset, judge: Bundle, place: Location, *, studies: int, percentile: float
) -> None:
    """Computes the gate of a dataset once and writes it to ``place``; nothing happens where it is.

    Args:
        dataset: Its training split is compared with, its validation split sets the threshold.
        judge: Gives the features.
        place: The file.
        studies: Training studies at most.
        percentile: Of the validation images' distances to their nearest training image.

    Raises:
        GenerationError: If the judge gives no features, or there are too few validation images.
    """
    if place.exists():
        return
    try:
        network = feature_judge(judge)
        features: dict[str, list[Tensor]] = {"train": [], "validation": []}
        patients: list[str] = []
        for split, limit in (("train", studies), ("validation", studies)):
            seen = 0
            for batch in read_batches(dataset, split, batch_size=256):
                batch = batch.select(torch.arange(min(len(batch), limit - seen)))
                features[split].append(extract_features(network, batch.image))
                patients += batch.patient_ids if split == "train" else ()
                seen += len(batch)
                if seen >= limit:
                    break
        training, held_out = (torch.cat(parts) for parts in features.values())
        threshold = calibrate_gate(training, held_out, percentile=percentile).threshold
        if threshold == 0:
            raise ValueError("images of the validation split are exact copies of training images.")
    except ValueError as error:
        raise GenerationError(
            f"No threshold for near copies: {error} near_copy_percentile=0 goes without the gate."
        ) from error
    buffer = io.BytesIO()
    np.savez(buffer, features=training.float().numpy(), patients=np.array(patients), threshold=threshold)
    place.write_bytes(buffer.getvalue())


def read_gate(place: Location) -> Gate:
    """The gate that `prepare_gate` wrote."""
    with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as stored:
        return Gate(
            torch.from_numpy(stored["features"]), stored["patients"], float(stored["threshold"].item())
        )


def no_gate() -> Gate:
    """A gate that lets every image pass."""
    return Gate(torch.zeros(0, 1), np.array([], dtype=str), 0.0)
