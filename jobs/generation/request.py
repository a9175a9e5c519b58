"""What a ``generate`` is asked for, and the folder that belongs to one request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from counterray import __version__
from counterray.bundle import Bundle
from counterray.config import Config, ConfigError, flatten
from counterray.data.dataset import Dataset
from counterray.models.generator import Edit, Severity
from counterray.storage import Location
from counterray.training.run_folder import LOCK_FILE

FORMAT = 1
"""Version of the folder's layout."""

REQUEST_FILE = "request.json"

SHUFFLED = "shuffled"
"""Donor of a request in which every study takes the pathology of another one."""

_HARMLESS = ("resources", "contact_sheet")
"""Settings that change no image: they may differ between two runs into the same folder."""

_IDENTIFIERS = ("image_ids", "donor")
"""Settings that name images; messages do not repeat them."""


class GenerationError(RuntimeError):
    """Images cannot be made as asked; the message names the setting, its value and the remedy."""


class WorkersConfig(Config):
    """Where images are made."""

    workers: int | None = Field(default=None, ge=1)
    """Processes that hold the generator; as many as the cluster's CPUs allow by default."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a worker, which computes on its first one; 0 computes on the CPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch's CPU operators in a worker."""


class WorkConfig(Config):
    """A job's settings that say where its images are made."""

    resources: WorkersConfig = WorkersConfig()
    """Where images are made."""


class GenerateConfig(WorkConfig):
    """Which images to make. Exactly one of ``do``, ``prompt`` and ``donor`` says what they should show."""

    split: str = "test"
    """Split whose studies are edited."""
    studies: int | None = Field(default=None, ge=1)
    """Studies to edit at most, in stored order; all of the split by default."""
    image_ids: tuple[str, ...] = ()
    """Only these images of the split."""
    drawn: int = Field(default=0, ge=0)
    """Anatomies to draw at random from the split, for images from text alone; 0 edits given studies. The
    anatomy is a patient's still: such images are synthetic, not anonymous."""
    do: dict[str, float | str] = Field(default_factory=dict)
    """Variable to value, together one intervention, such as ``{finding.edema: 1}`` or ``{sex: male}``."""
    severity: Severity = ""
    """How marked the findings that are set should be."""
    prompt: str = ""
    """What the images should show, in words."""
    donor: str = ""
    """Image whose pathology every study takes, or ``shuffled`` for that of another study each."""
    generator: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator itself, where its stage has some, such as ``{sampler: {steps: 20}}``."""
    samples: int = Field(default=1, ge=1)
    """Counterfactuals of each study, with a seed each; one where the generator's do not depend on it."""
    seed: int = Field(default=0, ge=0)
    """With the image and the number of the sample it fixes the noise of every image."""
    format: Literal["png", "dicom"] = "png"
    """PNG of 8 bits, or DICOM Secondary Capture."""
    dicom_bits: Literal[8, 12] = 12
    """Bits of a grey value in DICOM files."""
    batch_size: int = Field(default=32, ge=1)
    """Images that the generator makes at a time."""
    chunk_images: int = Field(default=64, ge=1)
    """Images of a chunk at most: the unit of parallel work and of resuming."""
    bank_studies: int = Field(default=2048, ge=1)
    """Training studies that a generator may take pathologies from, where it works so."""
    contact_sheet: int = Field(default=48, ge=0, le=1000)
    """Images on the contact sheet at most."""

    def edit(self) -> Edit:
        """What is asked of the generator.

        Raises:
            ConfigError: If it is not asked in exactly one way.
            EditError: If findings or severity are none.
        """
        ways = {"do": self.do, "prompt": self.prompt, "donor (--from)": self.donor}
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            raise ConfigError(
                f"Exactly one of do, prompt and donor (--from) says what the images should show; given: "
                f"{', '.join(given) or 'none'}."
            )
        if self.image_ids and self.studies is not None:
            raise ConfigError("image_ids names the studies, so studies cannot limit them: leave one out.")
        if self.drawn and (not self.prompt or self.image_ids or self.studies is not None):
            raise ConfigError(
                "Images from text alone need a prompt, and draw their anatomies themselves: leave out "
                "image_ids and studies."
            )
        return Edit(do=self.do, prompt=self.prompt, severity=self.severity, anatomy_only=bool(self.drawn))


@dataclass(frozen=True)
class Request:
    """What decides every byte of the images: a folder belongs to one of these.

    Attributes:
        job: Name of the job.
        content: Format, software, model, data and settings, as plain JSON values.
    """

    job: str
    content: Mapping[str, Any]

    @property
    def checksum(self) -> str:
        """Over all of the content; names of instances in DICOM files are derived from it."""
        text = json.dumps({"job": self.job, **self.content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_request(
    job: str, bundle: Bundle, dataset: Dataset, config: WorkConfig, *, harmless: Collection[str] = _HARMLESS
) -> Request:
    """The request of a job; where bundle and dataset lie does not matter, what they are does."""
    return Request(
        job,
        {
            "format": FORMAT,
            "software": __version__,
            "model": {"stage": bundle.stage, "checksum": bundle.checksum, "parents": parents_of(bundle)},
            "data": dataset.manifest.fingerprint,
            "device": "cuda" if config.resources.gpus_per_worker else "cpu",
            "config": config.model_dump(mode="json", exclude=set(harmless)),
        },
    )


def parents_of(bundle: Bundle) -> dict[str, str]:
    """Role to checksum of the bundles that a bundle was made from; theirs are part of their checksums."""
    return {role: str(parent["checksum"]) for role, parent in bundle.manifest["parents"].items()}


def check_folder(target: Location, request: Request) -> None:
    """Says why the folder cannot be this request's own, where it cannot.

    Raises:
        GenerationError: If it holds something else, or what another request made.
    """
    if target.is_file():
        raise GenerationError(f"--out {target.uri} is a file; give an empty or a new folder.")
    place = target / REQUEST_FILE
    if not place.exists():
        if set(target.files()) - {LOCK_FILE}:
            raise GenerationError(
                f"--out {target.uri} holds files, but none of a python -m jobs {request.job}. Give an empty "
                "or a new folder."
            )
        return
    before = place.read_json()
    if before.get("checksum") == request.checksum:
        return
    old, new = flatten(before), flatten({"job": request.job, **request.content})
    old.pop("checksum", None)
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    differences = "; ".join(_difference(name, old.get(name), new.get(name)) for name in changed)
    raise GenerationError(
        f"--out {target.uri} holds what another request made: {differences}. Give another folder, or delete "
        "this one."
    )


def claim(target: Location, request: Request) -> None:
    """Writes the request into its folder, where it is not there yet; under the folder's lock.

    Raises:
        GenerationError: If another request was quicker.
    """
    check_folder(target, request)
    place = target / REQUEST_FILE
    if not place.exists():
        place.write_json({"job": request.job, **request.content, "checksum": request.checksum})


def _difference(name: str, old: Any, new: Any) -> str:
    if name.rpartition(".")[2] in _IDENTIFIERS:
        return f"{name} differs"
    return f"{name} was {old!r} and is {new!r}"
