"""Pictures that answers carry: marked as synthetic, with where they come from."""

from __future__ import annotations

import base64
import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from counterray import __version__
from counterray.data.pixels import encode
from counterray.data.secondary_capture import MOST_DESCRIPTION, Origin, encode_secondary_capture
from counterray.data.synthetic_png import encode_png
from counterray.models.generator import Edit
from serve.schemas import Provenance

NEUTRAL = 128
"""Grey value of a direct-effect map where nothing changed."""


def made_picture(grey: NDArray[np.uint8], provenance: Provenance, *, seed: int) -> str:
    """A synthetic image as PNG in base64; its text chunks say so, and name model, bundle and seed.

    Args:
        grey: ``[H, W]``.
        provenance: Where it comes from.
        seed: Seed of its noise.
    """
    said = {**provenance.model_dump(mode="json"), "seed": seed}
    source = f"bundle {provenance.checksum}"
    return text_of(encode_png(grey, source=source, more={"Provenance": json.dumps(said, sort_keys=True)}))


def made_dicom(
    grey: NDArray[np.uint8], provenance: Provenance, edit: Edit, *, seed: int, of: NDArray[np.uint8]
) -> str:
    """A synthetic image as DICOM Secondary Capture in base64; equal requests give equal files.

    Args:
        grey: ``[H, W]``.
        provenance: Where it comes from.
        edit: What was asked for.
        seed: Seed of its noise.
        of: The image that it is a counterfactual of, ``[H, W]``; what names the files is hashes of it.
    """
    asked = {name: value for name, value in vars(edit).items() if value}
    said = json.dumps(provenance.model_dump(mode="json") | asked, sort_keys=True)
    source = hashlib.sha256(of.tobytes()).hexdigest()
    description = (
        f"Synthetic counterfactual by counterray {__version__}, for research; not an examination, and not "
        f"the patient's image. Generator {provenance.stage} {provenance.checksum}, seed {seed}. Asked for: "
    )
    origin = Origin(
        request=hashlib.sha256(f"{said}\0{source}".encode()).hexdigest(),
        patient=source,
        image=str(seed),
        number=1,
        description=(description + json.dumps(asked, sort_keys=True))[:MOST_DESCRIPTION],
        software=__version__,
    )
    return text_of(encode_secondary_capture(grey, origin, bits=8))


def given_picture(grey: NDArray[np.uint8]) -> str:
    """An observed image ``[H, W]`` as PNG in base64, without any metadata."""
    return text_of(encode(grey))


def effect_map(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The direct effect ``128 + (after - before) / 2`` of grey values, ``[H, W]``, kept within 0 to 255."""
    half = (after.astype(np.int16) - before.astype(np.int16)) / 2
    return np.rint(NEUTRAL + half).clip(0, 255).astype(np.uint8)


def text_of(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()
