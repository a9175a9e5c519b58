"""What the stand-in gateway answers with: the phantom's pictures, and scores that follow from its truth."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from counterray.data.dicom import decode_any
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY
from counterray.data.phantom.studies import make_batch, parents_of
from serve.schemas import Intervention, MadeImage, Score

SIZE = 192
"""Edge of the pictures [px]."""

STUDIES = 4
GRADES = {"": 0.6, "mild": 0.35, "moderate": 0.6, "severe": 0.95}
AGES = ("20-39", "40-59", "60-79", "80+")
AGE_OF_LEVEL = dict(zip(AGES, (30.0, 50.0, 70.0, 85.0), strict=True))

Grey = npt.NDArray[np.uint8]
Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Abducted:
    """A phantom patient whose noise is known: a picture and all that made it."""

    grey: Grey
    parents: Values

    @property
    def inferred(self) -> dict[str, str | float]:
        """What a judge that never errs reads."""
        return {name: VOCABULARY[name][int(self.parents[name])] for name in ("sex", "scanner")}


class Phantoms:
    """A few phantom patients, and their exact counterfactuals."""

    def __init__(self) -> None:
        self._scm = exact_scm(SIZE)
        self._lock = threading.Lock()
        self.patients = [self._patient(number) for number in range(STUDIES)]

    def _patient(self, number: int) -> Abducted:
        batch = make_batch(1, image_size=SIZE, seed=21, start=number)
        return Abducted(_grey(batch.image), parents_of(batch))

    def abduct(self, file: bytes) -> Abducted | None:
        """The patient whose picture is nearest to a PNG, JPEG or DICOM file; none if none is near.

        Raises:
            Rejected: If the file cannot be decoded.
        """
        picture = 255 * decode_any(file)
        if picture.shape != (SIZE, SIZE):
            return None
        errors = [float(np.abs(one.grey - picture).mean()) for one in self.patients]
        nearest = int(np.argmin(errors))
        return self.patients[nearest] if errors[nearest] < 4 else None

    def made(self, of: Abducted, asked: Intervention) -> tuple[MadeImage, ...]:
        """Exact counterfactuals, one to a seed; words are searched for the names of findings."""
        return tuple(self._one(of, asked, seed) for seed in asked.seeds)

    def _one(self, of: Abducted, asked: Intervention, seed: int) -> MadeImage:
        do = _varied(_values(asked), seed)
        held = {name: of.parents[name] for name in ("scanner", "site") if name not in do}
        image = torch.from_numpy(of.grey)[None, None].float() / 127.5 - 1
        with self._lock:  # PyTorch's own threads; answers are computed one at a time
            world = self._scm.counterfactual({"image": image, **of.parents}, held | do)
        grey = _grey(world["image"])
        change = np.round(128 + (grey.astype(float) - of.grey) / 2).clip(0, 255).astype(np.uint8)
        return MadeImage(seed=seed, image=png(grey), effect=png(change), scores=_scores(of.parents, world))


def _values(asked: Intervention) -> Values:
    """An intervention as values of the phantom's variables."""
    found: dict[str, float] = {}
    words = asked.prompt.lower()
    grade = next((GRADES[name] for name in GRADES if name and name in words), GRADES[asked.severity])
    for name in FINDING_NAMES:
        if name.replace("_", " ") in words or asked.do.get(f"finding.{name}") == 1:
            found[f"severity.{name}"] = grade
        elif asked.do.get(f"finding.{name}") == 0 or asked.do.get("finding.no_finding") == 1:
            found[f"severity.{name}"] = 0.0
    for name, level in asked.do.items():
        if name == "age":
            found[name] = AGE_OF_LEVEL[str(level)]
        elif name in VOCABULARY:
            found[name] = float(VOCABULARY[name].index(str(level)))
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in found.items()}


def _varied(do: Values, seed: int) -> Values:
    """Findings that are a little less severe with every other seed."""
    share = 1 - 0.05 * (seed % 4)
    return {name: value * share if name.startswith("severity.") else value for name, value in do.items()}


def _scores(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> tuple[Score, ...]:
    findings = [
        Score(
            judge="classifier 3f9a2c71",
            name=name,
            before=_finding(float(before[f"severity.{name}"])),
            after=_finding(float(after[f"severity.{name}"])),
        )
        for name in FINDING_NAMES
    ]
    male = [0.04 + 0.93 * float(values["sex"]) for values in (before, after)]
    sex = Score(judge="demographic b81d02e4", name="sex=male", before=male[0], after=male[1])
    return (*findings, sex)


def _finding(severity: float) -> float:
    """A judge's probability: 0.05 without the finding, 0.9 at a severity of 0.6."""
    return 1 / (1 + math.exp(-8.6 * severity + 2.94))


def _grey(image: torch.Tensor) -> Grey:
    return ((image[0, 0] + 1) * 127.5).round().to(torch.uint8).numpy()


def png(grey: Grey) -> str:
    """A PNG in base64, marked as synthetic, as the API sends it."""
    marks = PngInfo()
    marks.add_text("Synthetic", "true")
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", pnginfo=marks)
    return base64.b64encode(buffer.getvalue()).decode()
