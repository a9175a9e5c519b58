"""What a gateway shows of audits."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from starlette.testclient import TestClient

from serve.metrics import Metrics
from serve.noise_cache import Counts
from serve.schemas import Audit, AuditRequest
from tests.serve_world import local_app, write_models


def audit(state: str, **verdicts: dict[str, str]) -> Audit:
    request = {"classifiers": ["s3://m/b"], "data": "s3://d/p", "generator": "exact", "attributes": ["sex"]}
    return Audit(
        id="0" * 32,
        state=state,
        created=datetime.now(UTC),
        finished=None,
        request=AuditRequest.model_validate(request),
        message="",
        verdicts=verdicts,
    )


def shown(metrics: Metrics) -> dict[str, float]:
    page = metrics.page(inside=0, noise=Counts(nbytes=0, entries=0, hits=0, misses=0)).decode()
    pairs = (line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("counterray_audit"))
    return {name.replace('gateway="one",', ""): float(value) for name, value in pairs}


def test_audits_are_counted_by_state_and_verdicts_by_attribute():
    metrics = Metrics("one")
    metrics.audited(
        [
            audit("running"),
            audit("succeeded", sex={"edema": "dependent", "effusion": "dependent"}, age={"edema": "none"}),
            audit("succeeded", sex={"edema": "none"}),
        ]
    )
    assert shown(metrics) == {
        'counterray_audits{state="queued"}': 0,
        'counterray_audits{state="running"}': 1,
        'counterray_audits{state="succeeded"}': 2,
        'counterray_audits{state="failed"}': 0,
        'counterray_audits{state="stopped"}': 0,
        'counterray_audit_verdicts{attribute="sex",verdict="dependent"}': 2,
        'counterray_audit_verdicts{attribute="sex",verdict="none"}': 1,
        'counterray_audit_verdicts{attribute="age",verdict="none"}': 1,
    }
    metrics.audited([])
    assert not any("verdicts" in name for name in shown(metrics))


def test_every_round_of_the_audits_is_shown_also_after_one_that_failed(monkeypatch, tmp_path):
    class Auditor:
        rounds = 0

        def advance(self):
            self.rounds += 1
            if self.rounds == 1:
                raise ConnectionError("storage is away")
            return [audit("failed")]

    monkeypatch.setattr("serve.app._AUDIT_SECONDS", 0.01)
    app, _ = local_app(write_models(tmp_path), auditor=Auditor())
    with TestClient(app) as client:
        deadline = time.monotonic() + 10
        while 'state="failed"} 1.0' not in (page := client.get("/metrics").text):
            assert time.monotonic() < deadline, page
            time.sleep(0.01)
