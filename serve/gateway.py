"""The Serve application: a gateway in front of pools of generators. ``serve deploy`` imports `build`."""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.job_submission import JobSubmissionClient
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from counterray.bundle import open_bundle
from counterray.config import validate
from serve.app import create_app
from serve.auditor import Auditor
from serve.cards import card_of
from serve.generator import GeneratorReplica, ServeBackend
from serve.keys import Keyring
from serve.ray_jobs import RayJobs
from serve.routes import Services
from serve.samples import Samples
from serve.settings import Settings
from serve.shared import shared_actor

SURGE = 100
"""Replicas that an update starts before it ends those in their place [%]: none is missed meanwhile."""


def build(arguments: dict[str, Any]) -> Application:
    """The application of a server; pools are deployments ``generator-<pool>``, the ingress is ``gateway``.

    Args:
        arguments: `Settings`, as plain values: the ``args`` of a Serve config file.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    settings = validate(Settings, arguments)
    plain = settings.model_dump(mode="json")
    deployment = partial(serve.deployment, max_surge_percent=SURGE)
    pools = {
        pool: deployment(GeneratorReplica, name=f"generator-{pool}").bind(plain) for pool in settings.pools
    }
    return deployment(Gateway, name="gateway").bind(plain, pools)


@serve.ingress()
class Gateway:
    """The ingress: everything but computing.

    Args:
        settings: The server's, as plain values.
        pools: Name of each pool of generators to its handle.
    """

    def __init__(self, settings: dict[str, Any], pools: dict[str, DeploymentHandle]) -> None:
        self.settings = validate(Settings, settings)
        backend = ServeBackend(self.settings, pools, shared_actor(self.settings.noise))
        self.services = services_of(self.settings, backend)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once this object is there."""
        return create_app(self.services)


def services_of(settings: Settings, backend: ServeBackend) -> Services:
    """What the routes use, read from storage.

    Raises:
        BundleError: If a bundle cannot be trusted.
        ConfigError: If there is no key.
        StorageError: If something cannot be read.
    """
    judges = [open_bundle(uri) for uri in settings.judges]
    labels = [f"{judge.stage}:{judge.checksum[:8]}" for judge in judges]
    cards = {
        name: card_of(name, open_bundle(model.bundle), model, judges=labels)
        for name, model in settings.models.items()
    }
    auditor = None
    if settings.audits.roots:
        auditor = _auditor(settings)
    return Services(
        settings=settings,
        cards=cards,
        keyring=Keyring.read(settings.keys),
        backend=backend,
        samples=Samples.read(settings.samples),
        auditor=auditor,
        gateway=serve.get_replica_context().replica_id.unique_id,
    )


def _auditor(settings: Settings) -> Auditor:
    """Audits as jobs of ``audits.address``, where ``auto`` is the Ray that this very process is part of.

    Ray's own ``auto`` would be the one that was started last on this machine, for who submits a job and for
    the job itself: both are told the address.
    """
    url, joins = settings.audits.address, ""
    if url == "auto":
        joins = str(ray.get_runtime_context().gcs_address)
        url = str(ray_address_to_api_server_url(joins))
    return Auditor(settings, RayJobs(JobSubmissionClient(url)), joins=joins)
