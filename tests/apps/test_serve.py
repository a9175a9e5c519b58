"""The server on Ray Serve: batches, pools, noise that outlives replicas, faults."""

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from tests.apps.serving import deploy, update
from tests.serve_world import file_of, form_of, radiograph, write_models

pytestmark = pytest.mark.cluster

PICTURE = file_of(radiograph())


@pytest.fixture(scope="module")
def plain(ray_cluster, tmp_path_factory):
    plain = write_models(tmp_path_factory.mktemp("serve"))
    plain["models"]["attributes"]["pool"] = "rare"
    yield {**plain, "batch": {"size": 8}, "limits": {"rate": "1000000/minute"}}
    serve.shutdown()


@pytest.fixture(scope="module")
def client(plain):
    with deploy(plain) as client:
        yield client


def ask(client, seed=0, picture=PICTURE, **given):
    asked = {"model": "words", "prompt": "Severe cardiomegaly.", "observed": {}, "seeds": [seed], **given}
    return client.post("/v1/counterfactuals", **form_of(picture, **asked))


def pixels(answer):
    text = answer.json()["images"][0]["image"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def batches(client):
    """Requests by the size of their batch, as /metrics has it: [(at most, requests)]."""
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("counterray_batch_requests_bucket")]
    return {line.split('le="')[1].split('"')[0]: float(line.split()[-1]) for line in found if "words" in line}


def test_many_at_once_are_computed_together_and_get_what_they_get_alone(client):
    alone = [ask(client, seed) for seed in range(8)]
    assert {answer.status_code for answer in alone} == {200}, alone[0].text
    before = batches(client)
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda seed: ask(client, seed), [*range(8)] * 3))
    for one, other in zip(alone * 3, together, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert not np.array_equal(pixels(alone[0]), pixels(alone[1]))
    after = batches(client)
    in_small = after["2.0"] - before["2.0"]
    assert in_small <= 16, "many wait while the first are computed, and are computed together"


def test_noise_is_found_after_every_replica_has_changed(client):
    first = ask(client)
    other = {"do": {"finding.edema": 1}}
    path = f"/v1/counterfactuals/{first.json()['noise_id']}"
    one = client.post(path, json=other)
    assert one.status_code == 200, one.text
    kill_replicas("generator-main")
    two = answered(lambda: client.post(path, json=other))
    assert np.abs(pixels(one) - pixels(two)).max() <= 1


def test_a_replica_that_dies_costs_its_own_requests_at_most(client):
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, client, seed) for seed in range(4)]
        kill_replicas("generator-main")
        answers = [future.result() for future in futures]
    for answer in answers:
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            assert answer.json()["type"] in ("/problems/unavailable", "/problems/overloaded")
            assert answer.headers["retry-after"]
    assert answered(lambda: ask(client)).status_code == 200


def test_events_come_through(client):
    answer = client.post(
        "/v1/counterfactuals",
        **form_of(PICTURE, model="words", prompt="Severe cardiomegaly.", observed={}),
        headers={"Accept": "text/event-stream"},
    )
    names = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names[-1] == "event: answer", answer.text[:500]
    assert names[:-1] == ["event: preview"] * (len(names) - 1)
    assert len(names) > 1


def test_a_model_of_another_pool_answers_and_is_listed_as_loaded(client):
    made = ask(client, model="attributes", prompt="", do={"sex": "male"}, observed={"sex": "female"})
    assert made.status_code == 200, made.text
    deadline = time.monotonic() + 40
    loaded = set()
    while "attributes" not in loaded and time.monotonic() < deadline:
        time.sleep(1)
        cards = client.get("/v1/models").json()["models"]
        loaded = {card["name"] for card in cards if card["loaded"]}
    assert "attributes" in loaded


def test_an_update_under_load_fails_no_request(client, plain):
    done, answers = threading.Event(), []

    def ask_on():
        while not done.is_set():
            answers.append(ask(client))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask_on) for _ in range(3)]
        try:
            update({**plain, "batch": {"size": 4}})
            updated = len(answers)
            while len(answers) < updated + 6:
                time.sleep(0.1)
        finally:
            done.set()
    assert [future.exception() for future in asking] == [None] * 3
    assert updated
    assert {answer.status_code for answer in answers} == {200}


def test_it_says_that_it_is_ready(client):
    assert client.get("/readyz").json() == {"status": "ready"}


def kill_replicas(deployment):
    """Kills the actors of a deployment's replicas, as a fault does."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if f"#{deployment}#" in actor["name"]:
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)


def answered(request):
    """The answer once it is no 503: Serve starts a replica in place of one that died."""
    deadline = time.monotonic() + 60
    while (answer := request()).status_code == 503 and time.monotonic() < deadline:
        time.sleep(1)
    return answer
