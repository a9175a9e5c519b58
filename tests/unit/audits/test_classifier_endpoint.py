"""The HTTP adapter against a real server that fails as servers do."""

import base64

import numpy as np
import pytest
import torch

from counterray.audits.classifiers import endpoint
from counterray.audits.classifiers.contract import ClassifierError
from counterray.audits.classifiers.endpoint import EndpointClassifier, EndpointConfig, EndpointError
from tests.score_server import brightness, serve_scores

FINDINGS = ("edema", "atelectasis")


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve_scores() as state:
        yield state


@pytest.fixture
def waits(monkeypatch):
    """The waits that were asked for, none of them waited."""
    found = []
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: found.append(seconds) if seconds else None)
    return found


def client(server, **settings):
    given = {"url": server.url, "findings": FINDINGS, "requests_per_second": 1e6, **settings}
    return EndpointClassifier(EndpointConfig(**given), allowed_hosts=[server.host])


def images(count=5, size=8):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ask(classifier, image):
    return classifier.scores(image, keys=[str(row) for row in range(len(image))])


def test_images_go_out_in_batches_as_png_and_come_back_in_order(server):
    image = images(5)
    found = ask(client(server, batch_size=2), image)
    assert [len(seen["body"]["images"]) for seen in server.seen] == [2, 2, 1]
    assert set(server.seen[0]["body"]) == {"images"}
    grey = ((image[:, 0].double() + 1) * 127.5).round().mean(dim=(1, 2)) / 255
    np.testing.assert_allclose(found[:, 0], grey, atol=1e-9)
    np.testing.assert_allclose(found[:, 1], 1 - grey, atol=1e-9)
    assert server.seen[0]["key"] is None


def test_images_are_resized_where_the_endpoint_wants_a_size(server):
    ask(client(server, size=4), images(1))
    with endpoint.Image.open(
        endpoint.io.BytesIO(base64.b64decode(server.seen[0]["body"]["images"][0]))
    ) as sent:
        assert sent.size == (4, 4)


def test_the_key_comes_from_the_environment(server, monkeypatch):
    with pytest.raises(ClassifierError, match="environment variable AUDIT_KEY"):
        client(server, key_variable="AUDIT_KEY")
    monkeypatch.setenv("AUDIT_KEY", "secret")
    classifier = client(server, key_variable="AUDIT_KEY")
    ask(classifier, images(1))
    assert server.seen[0]["key"] == "Bearer secret"
    assert "secret" not in classifier.fingerprint + repr(classifier.config)


def test_no_image_leaves_for_a_host_that_is_not_allowed(server):
    config = EndpointConfig(url=server.url, findings=FINDINGS)
    with pytest.raises(
        ClassifierError, match=r"not allowed.*allowed_hosts=\[127.0.0.1:\d+\].*Allowed now: other"
    ):
        EndpointClassifier(config, allowed_hosts=["other"])
    with pytest.raises(ClassifierError, match="without user and password"):
        EndpointClassifier(EndpointConfig(url="http://u:p@host/x", findings=FINDINGS), allowed_hosts=["host"])
    with pytest.raises(ClassifierError, match="unencrypted"):
        EndpointClassifier(
            EndpointConfig(url="http://host/x", findings=FINDINGS, key_variable="K"), allowed_hosts=["host"]
        )
    assert server.seen == []


def test_a_redirect_is_not_followed(server):
    server.statuses, server.headers = [302], {"Location": "http://elsewhere.invalid/"}
    with pytest.raises(EndpointError, match=r"status 302\. Redirects are not followed"):
        ask(client(server), images(1))


def test_what_may_pass_is_tried_again(server, waits):
    server.statuses = [503, 0, 429]
    found = ask(client(server), images(2))
    assert found.shape == (2, 2)
    assert len(server.seen) == 4
    assert waits == [0.5, 1.0, 2.0]


def test_retry_after_is_kept_and_bounded(server, waits):
    server.statuses, server.headers = [429], {"Retry-After": "7"}
    ask(client(server), images(1))
    server.statuses, server.headers = [429], {"Retry-After": "86400"}
    ask(client(server), images(1))
    assert waits == [7.0, 120.0]


def test_a_refusal_is_not_tried_again(server):
    server.statuses = [401]
    with pytest.raises(EndpointError, match=r"status 401.*key_variable"):
        ask(client(server), images(1))
    assert len(server.seen) == 1


def test_an_endpoint_that_stays_away_is_told_after_all_attempts(server, waits):
    server.dies_after = 0
    with pytest.raises(
        EndpointError, match=r"3 attempts; the last one ended with \w+.*what was answered stays"
    ):
        ask(client(server, retries=2), images(1))
    assert len(server.seen) == 3


def test_nothing_listens():
    config = EndpointConfig(url="http://127.0.0.1:9/x", findings=FINDINGS, retries=0)
    with pytest.raises(EndpointError, match="ConnectionRefusedError"):
        ask(EndpointClassifier(config, allowed_hosts=["127.0.0.1:9"]), images(1))


def test_an_answer_that_is_none(server):
    for body in (b"<html>", b"{}", b'{"scores": 3}', b'{"scores": [["a", "b"]]}'):
        server.body = body
        with pytest.raises(EndpointError, match="did not answer with JSON"):
            ask(client(server), images(1))
    server.body = b'{"scores": [[0.5]]}'
    with pytest.raises(ClassifierError, match=r"shape \[1, 1\] to 1 images; \[1, 2\]"):
        ask(client(server), images(1))


def test_null_is_a_missing_number(server):
    server.body = b'{"scores": [[null, 0.25]]}'
    np.testing.assert_array_equal(ask(client(server), images(1)), [[np.nan, 0.25]])


def test_the_rate_is_limited(server, monkeypatch):
    clock, waited = [100.0], []
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: clock[0])

    def sleep(seconds):
        waited.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(endpoint.time, "sleep", sleep)
    ask(client(server, requests_per_second=2, batch_size=1), images(3))
    assert [wait for wait in waited if wait] == [0.5, 0.5]


def test_settings_that_change_no_answer_keep_the_fingerprint(server):
    first = client(server)
    assert client(server, retries=1, timeout_seconds=5, name="x").fingerprint == first.fingerprint
    assert client(server, version="2").fingerprint != first.fingerprint


def test_brightness_reads_what_png_writes():
    assert brightness(endpoint.png(torch.full((1, 4, 4), 1.5))) == 1.0
    assert brightness(endpoint.png(torch.full((1, 4, 4), -1.0))) == 0.0
