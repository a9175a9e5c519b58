"""Numbers for Prometheus, of one gateway; each carries the gateway's name, over which they are summed."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.noise_cache import Counts
from serve.schemas import Audit, AuditState
from serve.work import Made

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What a gateway counts.

    Args:
        gateway: Its name among others.
    """

    def __init__(self, gateway: str) -> None:
        self._registry = CollectorRegistry()
        self._gateway = gateway
        shared: dict[str, Any] = {"registry": self._registry, "namespace": "counterray"}
        self.requests = Counter(
            "requests", "Requests by route and HTTP status.", ("gateway", "route", "status"), **shared
        )
        self.latency = Histogram(
            "request_seconds",
            "From the request to its answer.",
            ("gateway", "route"),
            buckets=_SECONDS,
            **shared,
        )
        self.stages = Histogram(
            "stage_seconds",
            "Stages of a request: decode, wait (in the replica's queue), load, abduct, predict, score, call "
            "(all that the gateway waits for).",
            ("gateway", "model", "stage"),
            buckets=_SECONDS,
            **shared,
        )
        self.batches = Histogram(
            "batch_requests",
            "Requests that were computed together, as each request saw it.",
            ("gateway", "model"),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            **shared,
        )
        self.inside = Gauge("requests_inside", "Requests that are being answered.", ("gateway",), **shared)
        self.calls = Gauge(
            "calls_open",
            "Requests that wait for a model, or that it computes.",
            ("gateway", "model"),
            **shared,
        )
        self.noise_used = Counter(
            "noise_used", "Interventions on noise that was kept.", ("gateway", "model"), **shared
        )
        self.audits = Gauge("audits", "Audits in storage by their state.", ("gateway", "state"), **shared)
        self.verdicts = Gauge(
            "audit_verdicts",
            "Verdicts of audits in storage that have succeeded.",
            ("gateway", "attribute", "verdict"),
            **shared,
        )
        self.noise_bytes = Gauge("noise_bytes", "Memory of the noise that is kept.", **shared)
        self.noise_entries = Gauge("noise_entries", "Abductions that are kept.", **shared)
        self.noise_hits = Gauge("noise_hits", "Noise that was asked for and there.", **shared)
        self.noise_misses = Gauge("noise_misses", "Noise that was asked for and gone.", **shared)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.requests.labels(self._gateway, route, str(status)).inc()
        self.latency.labels(self._gateway, route).observe(seconds)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """Notes how long a stage of a request took."""
        self.stages.labels(self._gateway, model, stage).observe(seconds)

    @contextmanager
    def calling(self, model: str) -> Iterator[None]:
        """While a model is waited for."""
        started = time.perf_counter()
        with self.calls.labels(self._gateway, model).track_inprogress():
            yield
        self.stage(model, "call", time.perf_counter() - started)

    def made(self, model: str, made: Made) -> None:
        """Notes what a replica said of a work."""
        self.batches.labels(self._gateway, model).observe(made.batch)
        for stage, seconds in made.seconds.items():
            self.stage(model, stage, seconds)

    def audited(self, audits: Sequence[Audit]) -> None:
        """Notes the audits that are in storage, which every gateway sees alike."""
        states = Tally(audit.state for audit in audits)
        for state in get_args(AuditState):
            self.audits.labels(self._gateway, state).set(states[state])
        self.verdicts.clear()
        given = Tally(
            (attribute, verdict)
            for audit in audits
            for attribute, targets in audit.verdicts.items()
            for verdict in targets.values()
        )
        for (attribute, verdict), count in given.items():
            self.verdicts.labels(self._gateway, attribute, verdict).set(count)

    def page(self, *, inside: int, noise: Counts) -> bytes:
        """All of it in Prometheus' text format.

        Args:
            inside: Requests that are being answered.
            noise: The kept noise in numbers.
        """
        self.inside.labels(self._gateway).set(inside)
        self.noise_bytes.set(noise.nbytes)
        self.noise_entries.set(noise.entries)
        self.noise_hits.set(noise.hits)
        self.noise_misses.set(noise.misses)
        return generate_latest(self._registry)
