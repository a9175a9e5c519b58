"""What a server is told: models, judges, limits, places. One schema for a laptop and for a cluster."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from counterray.config import Config
from serve.schemas import ModelName

MAIN = "main"
"""Pool of models that name no other."""


class ModelSettings(Config):
    """A generator that requests can name."""

    bundle: str
    """Folder or ``s3://`` URI of its bundle."""
    pool: str = Field(default=MAIN, pattern=r"^[a-z][a-z0-9-]{0,31}$")
    """Replicas that hold it: each pool is a Serve deployment ``generator-<pool>``, with its own resources and
    autoscaling. Models that are seldom asked for share a pool that shrinks to no replica."""
    generator: dict[str, Any] = Field(default_factory=dict)
    """Settings of its stage, such as ``{sampler: {steps: 20}}``."""
    data: str = ""
    """Dataset whose training split it takes pathologies or references from; needed by ``gsvae``, and by
    ``pathology_ldm`` where noise is optimised."""
    bank_studies: int = Field(default=2048, ge=1)
    """Training studies that it takes them from."""


class SampleSettings(Config):
    """Images that the server offers for trying, and whose anatomy images from text alone are drawn on."""

    data: str
    """Dataset of an ingest. Its patients' images are shown to everyone with a key."""
    split: str = "test"
    """Split of the samples."""
    count: int = Field(default=12, ge=1, le=100)
    """Samples: the first studies of the split."""


class UploadSettings(Config):
    """What an upload may be."""

    most_bytes: int = Field(default=32 << 20, ge=1)
    """Size of an image file [bytes]; a request may be larger by base64's third."""
    most_pixels: int = Field(default=25_000_000, ge=1)
    """Pixels of an image; the largest detectors have 20 million."""
    workers: int = Field(default=2, ge=1)
    """Images that a gateway decodes at a time, each in a process of its own."""
    decode_seconds: float = Field(default=10.0, gt=0)
    """Time to decode an image; after this its process is ended, and the request answered 413."""
    decode_memory: int = Field(default=1 << 30, ge=1 << 20)
    """Memory that decoding an image may take beyond the process's own 80 MB [bytes]. Above this the request
    is answered 413; good images take up to 32 a pixel."""


class LimitSettings(Config):
    """How much may be asked for."""

    rate: str = "600/minute"
    """Requests of one key, in the notation of the library ``limits``; several are joined by ``;``."""
    concurrent: int = Field(default=32, ge=1)
    """Requests of one key at a time."""
    waiting: int = Field(default=64, ge=1)
    """Requests at a time that one gateway lets in; more are answered 503."""
    deadline_seconds: float = Field(default=60.0, gt=0)
    """After this a request is broken off and answered 504."""
    retry_after_seconds: int = Field(default=2, ge=1)
    """What a client that was sent away is told to wait."""
    store: str = "async+memory://"
    """Where rates are counted. Several gateways count together only in a store of their own, such as
    ``async+redis://host:6379``; in memory each counts for itself."""


class NoiseSettings(Config):
    """How long abducted noise is kept, for another intervention on it."""

    most_bytes: int = Field(default=512 << 20, ge=1)
    """Memory for all of it [bytes]; the least recently used is forgotten first."""
    expires_seconds: float = Field(default=1800.0, gt=0)
    """After this it is forgotten."""


class BatchSettings(Config):
    """How requests are computed together."""

    size: int = Field(default=8, ge=1)
    """Requests of one model at a time at most."""
    wait_seconds: float = Field(default=0.0, ge=0)
    """How long a replica that has nothing to do waits for a second request. While it computes, requests
    gather anyway, so that waiting delays the first of them and gains little."""
    rows: int = Field(default=32, ge=1)
    """Images that a generator makes at a time; requests with several seeds make several."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch's CPU operators in a replica."""


class AuditSettings(Config):
    """Audits through the API; off where no root is named."""

    roots: tuple[str, ...] = ()
    """Folders or ``s3://`` URIs: what is audited, and on which data, must lie below one of these."""
    out: str = ""
    """Folder or ``s3://`` URI of requests, states and results."""
    address: str = "auto"
    """Ray that runs audits: ``auto`` for the one that the server is in, or the URL of a Ray dashboard."""
    running: int = Field(default=1, ge=1)
    """Audits that run at a time; others are queued."""
    queued: int = Field(default=20, ge=1)
    """Audits that wait at most."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the job ``audit`` by dotted name, such as ``{resources.workers: 1}``."""

    @model_validator(mode="after")
    def _has_a_place(self) -> AuditSettings:
        if self.roots and not self.out:
            raise ValueError("audits.roots are set, but no audits.out, where results go")
        return self


class Settings(Config):
    """A server."""

    models: dict[ModelName, ModelSettings] = Field(min_length=1)
    """What can be asked for, by name."""
    judges: tuple[str, ...] = ()
    """Bundles of classifiers and demographic classifiers that score images and infer what was observed; none
    that took part in a generator's losses."""
    samples: SampleSettings | None = None
    """Images for trying."""
    keys: str = ".local/serve/keys.json"
    """File of hashed keys; see `keys.Keyring`."""
    uploads: UploadSettings = UploadSettings()
    """What an upload may be."""
    limits: LimitSettings = LimitSettings()
    """How much may be asked for."""
    noise: NoiseSettings = NoiseSettings()
    """How long noise is kept."""
    batch: BatchSettings = BatchSettings()
    """How requests are computed together."""
    audits: AuditSettings = AuditSettings()
    """Audits."""

    @field_validator("models")
    @classmethod
    def _exact_is_taken(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        if "exact" in models:
            raise ValueError("'exact' is the name of the phantom's own causal model in audits; take another")
        return models

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools, in the order of their first models."""
        return tuple(dict.fromkeys(model.pool for model in self.models.values()))
