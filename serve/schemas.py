"""What the API takes and gives: requests, answers and errors, as OpenAPI shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from counterray.models.generator import Severity

MOST_SEEDS = 8
"""Images of one request at most."""

LONGEST_PROMPT = 500
"""Characters of a prompt at most."""

MOST_STUDIES = 10_000_000
"""Studies that an audit may be limited to; the largest public datasets have some hundred thousand."""

Identifier = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""Of cached noise, of an audit: 128 random bits; only the owner of the key that made it finds it."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Name of a model, as ``GET /v1/models`` lists it."""


Term = Annotated[str, Field(max_length=100)]
"""A variable or a level, as a request names it."""


class Message(BaseModel):
    """Base of all that is sent: unknown fields are refused, their meaning stands in the OpenAPI document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Intervention(Message):
    """What the image should show, in one of two ways: variables (do) or words (prompt)."""

    do: dict[Term, float | Term] = Field(
        default_factory=dict, max_length=32, examples=[{"finding.pleural_effusion": 1}, {"sex": "male"}]
    )
    """Variable to value: a finding to 0 or 1 (``finding.edema``), an attribute to one of its levels, by name
    or by code. `GET /v1/models` lists what each model can set."""
    prompt: str = Field(default="", max_length=LONGEST_PROMPT, examples=["large left pleural effusion"])
    """What the image should show, in words."""
    severity: Severity = ""
    """Goes with findings that ``do`` sets to 1: how marked they should be."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        default=(0,), min_length=1, max_length=MOST_SEEDS
    )
    """A seed for each image. Models that are deterministic take one."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Steps of the sampler, where the model samples; the bundle's own by default."""
    guidance: float | None = Field(default=None, ge=1, le=20)
    """Scale of classifier-free guidance, where the model samples; the bundle's own by default."""
    dicom: bool = False
    """Whether each image also comes as a DICOM file."""

    @model_validator(mode="after")
    def _one_way(self) -> Intervention:
        if bool(self.do) == bool(self.prompt):
            raise ValueError("give either do or prompt, so that it is clear what the image should show")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from each other; equal seeds give equal images")
        return self


class CounterfactualRequest(Intervention):
    """A counterfactual of an image that is sent along."""

    model: ModelName
    """Which model makes it."""
    image: str = Field(min_length=1)
    """The image file in base64: PNG, JPEG or DICOM. Over ``multipart/form-data`` it is the part ``image``,
    and all else is JSON in the part ``request``."""
    observed: dict[Term, float | Term] | Literal["infer"] = "infer"
    """What is known of the image beside its pixels: attributes by level, findings by 0 or 1. ``infer`` lets
    the server's judges read from the image what the model needs."""


class TextRequest(Intervention):
    """Images from words alone, on the anatomy of a sample that the server has."""

    model: ModelName
    """Which model makes them."""

    @model_validator(mode="after")
    def _words(self) -> TextRequest:
        if not self.prompt:
            raise ValueError("images from text alone need a prompt that says what they show")
        return self


class Score(Message):
    """What a judge says of an image before and after."""

    judge: str
    """Name and first eight hex digits of the checksum of the judge."""
    name: str
    """The finding, or the attribute's level, such as ``edema`` or ``sex=male``."""
    before: float
    """Probability on the image that was sent [0 to 1]."""
    after: float
    """Probability on the counterfactual [0 to 1]."""


class MadeImage(Message):
    """One counterfactual."""

    seed: int
    """Seed of its noise."""
    image: str
    """PNG in base64, 8 bits, marked as synthetic in its text chunks."""
    dicom: str | None = None
    """The same as DICOM Secondary Capture in base64, marked as synthetic in its attributes, if asked for. It
    is named by hashes of the request, holds no patient, no date and no size of a pixel."""
    effect: str
    """Direct-effect map: PNG in base64, 8 bits; 128 where nothing changed, brighter where the counterfactual
    is, by half the difference of grey values."""
    scores: tuple[Score, ...]
    """Of every judge that the server has."""


class Provenance(Message):
    """Where an image comes from."""

    model: str
    """Name of the model."""
    stage: str
    """Stage that trained it."""
    checksum: str
    """SHA-256 of its bundle's manifest."""
    code_version: str
    """Of the server."""
    device: str
    """Kind of device that computed it; equal seeds give equal images on one kind."""
    synthetic: Literal[True] = True
    """Always: the image shows no examination."""


class CounterfactualAnswer(Message):
    """Counterfactuals, and the name under which their abducted noise is kept for another intervention."""

    noise_id: Identifier | None
    """For ``POST /v1/counterfactuals/{noise_id}``; ``null`` where nothing was abduced."""
    expires: datetime | None
    """When the noise is forgotten at the latest; it may be sooner, when memory is short."""
    input: str
    """The image as the model saw it: PNG in base64, at the model's own size."""
    inferred: dict[str, str | float]
    """What the judges read from the image where ``observed`` was ``infer``."""
    images: tuple[MadeImage, ...]
    """In the order of the seeds."""
    provenance: Provenance
    """Where they come from."""


class FindingLevels(Message):
    """A variable that a model can set."""

    name: str
    """As ``do`` names it, such as ``finding.edema`` or ``sex``."""
    levels: tuple[str, ...]
    """Its levels, in the order of their codes; of a finding ``absent`` and ``present``."""


class ModelCard(Message):
    """A model that can be asked for."""

    name: str
    """What requests call it."""
    stage: str
    """Stage that trained it."""
    checksum: str
    """SHA-256 of its bundle's manifest."""
    image_size: int
    """Edge of its images [px]."""
    variables: tuple[FindingLevels, ...]
    """What ``do`` can set."""
    prompts: bool
    """Whether it draws from words."""
    severity: bool
    """Whether it heeds ``severity``."""
    seeded: bool
    """Whether another seed makes another image."""
    steps: int | None
    """The sampler's steps, where it samples."""
    guidance: float | None
    """The scale of guidance, where it samples."""
    judges: tuple[str, ...]
    """Judges whose scores come with its images."""
    loaded: bool
    """Whether some replica holds it now; the first request to another waits until it is loaded."""


class ModelList(Message):
    """All models."""

    models: tuple[ModelCard, ...]
    """In the order of the configuration."""


class Sample(Message):
    """An image that the server offers for trying."""

    name: str
    """What it is called; no patient's identifier."""
    image: str
    """PNG in base64."""


class AuditRequest(Message):
    """An audit, as ``python -m jobs audit`` runs it; all places are the server's own storage."""

    classifiers: tuple[str, ...] = Field(min_length=1, max_length=64)
    """Bundles or ONNX files under the configured audit roots. No code, no pickles, nothing from the
    network."""
    generator: ModelName
    """Model that makes the counterfactuals, or ``exact`` on phantom data."""
    data: str
    """Dataset of an ingest, under the configured audit roots."""
    attributes: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")], ...] = Field(
        min_length=1, max_length=16
    )
    """Attributes to intervene on."""
    studies: int | None = Field(default=None, ge=10, le=MOST_STUDIES)
    """Studies at most; all of the split by default."""


AuditState = Literal["queued", "running", "succeeded", "failed", "stopped"]
"""Of an audit, as storage has it."""


class Audit(Message):
    """An audit's state."""

    id: Identifier
    """Its name."""
    state: AuditState
    """Where it is."""
    created: datetime
    """When it was asked for."""
    finished: datetime | None
    """When it ended."""
    request: AuditRequest
    """What was asked."""
    message: str
    """Why it failed, with a remedy; empty otherwise."""
    verdicts: dict[str, dict[str, str]]
    """Attribute to target to verdict, once it succeeded."""


class AuditList(Message):
    """A key's audits, the newest first."""

    audits: tuple[Audit, ...]
    """Those that were asked for with a key of the same owner."""


class Problem(Message):
    """An error, RFC 9457, sent as ``application/problem+json``."""

    type: str
    """A path of this server's documentation that names the kind, such as ``/problems/unknown-model``."""
    title: str
    """The kind in a few words."""
    status: int
    """The HTTP status."""
    detail: str
    """What exactly is wrong here; names the field, its value where it is no patient's, and the limit."""
    remedy: str
    """What to do."""
    instance: str
    """Identifier of the request, as in the logs."""
