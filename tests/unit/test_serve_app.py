"""The API over HTTP, with real models and without Ray."""

import asyncio
import base64
import io
import json
import time

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from starlette.testclient import TestClient

from serve import app as app_module
from serve.auditor import Auditor
from serve.keys import add_key
from serve.problems import MEDIA_TYPE
from serve.ray_jobs import RayJobs
from serve.settings import Settings
from serve.work import Preview
from tests.serve_jobs import Jobs, Status
from tests.serve_world import (
    LocalBackend,
    crowded_dicom,
    file_of,
    form_of,
    local_app,
    radiograph,
    write_models,
)

PICTURE = file_of(radiograph())
ASK = {"model": "words", "prompt": "Severe cardiomegaly.", "observed": {"finding.edema": 0}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def client(models):
    app, key = local_app(
        models, samples=[radiograph(32, 1), radiograph(32, 2)], uploads={"most_bytes": 100_000}
    )
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


@pytest.fixture(scope="module")
def roomy(models):
    """A client of a server that takes what servers take by default."""
    app, key = local_app(models)
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def refused(response, status, kind):
    """Whether a response is a problem of a kind, whole and with a remedy."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert body["type"] == f"/problems/{kind}", body
    assert body["remedy"]
    assert body["instance"] == response.headers["x-request-id"]
    return body["detail"]


def base64_of(data=PICTURE):
    return base64.b64encode(data).decode()


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def test_an_image_sent_either_way_gives_the_same_counterfactual(client):
    form = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK))
    text = client.post("/v1/counterfactuals", json={**ASK, "image": base64_of()})
    assert form.status_code == text.status_code == 200, form.text
    answer = form.json()
    assert answer["images"] == text.json()["images"]
    assert answer["noise_id"] != text.json()["noise_id"]
    assert answer["inferred"] == {}
    assert answer["provenance"]["model"] == "words"
    assert pixels(answer["input"]).shape == (32, 32)
    assert form.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/samples", "/v1/samples/sample-1.png", "/v1/audits"])
def test_a_key_is_needed_below_any_prefix(client, path):
    below = TestClient(client.app, root_path="/below", headers=client.headers)
    assert below.get(f"/below{path}").status_code == client.get(path).status_code
    del below.headers["Authorization"]
    assert refused(below.get(f"/below{path}"), 401, "unauthorised")
    assert below.get(f"/below{path}").headers["cache-control"] == "no-store"
    assert below.get("/below/healthz").status_code == 200


def test_a_kept_noise_takes_another_intervention(client):
    first = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).json()
    other = {"do": {"finding.edema": 1}, "severity": "mild"}
    again = client.post(f"/v1/counterfactuals/{first['noise_id']}", json=other)
    assert again.status_code == 200, again.text
    whole = client.post(
        "/v1/counterfactuals", **form_of(PICTURE, **{k: v for k, v in ASK.items() if k != "prompt"}, **other)
    )
    one, two = (pixels(answer.json()["images"][0]["image"]) for answer in (again, whole))
    assert np.abs(one - two).max() <= 1
    assert again.json()["noise_id"] == first["noise_id"]
    assert again.json()["expires"] == first["expires"] is not None
    refused(client.post(f"/v1/counterfactuals/{'0' * 32}", json=other), 404, "unknown-noise")


def test_images_come_from_words_alone(client):
    asked = {"model": "words", "prompt": "Severe cardiomegaly.", "seeds": [3, 4]}
    first, again = (client.post("/v1/images", json=asked) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.json() == again.json()
    assert first.json()["noise_id"] is None
    images = [image["image"] for image in first.json()["images"]]
    assert images[0] != images[1]
    without = {key: value for key, value in asked.items() if key != "prompt"}
    refused(client.post("/v1/images", json=without), 422, "invalid-request")


def test_events_show_the_image_on_its_way(client):
    headers = {"Accept": "text/event-stream"}
    response = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK), headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\n", 1) for part in response.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names == ["preview"] * (len(names) - 1) + ["answer"]
    assert len(names) >= 3
    preview, answer = (json.loads(data.removeprefix("data: ")) for _, data in (events[0], events[-1]))
    assert preview["step"] == 1
    plain = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).json()
    assert answer["images"] == plain["images"]
    wrong = form_of(PICTURE, **{**ASK, "prompt": "Lorem ipsum."})
    events = client.post("/v1/counterfactuals", **wrong, headers=headers).text
    assert events.startswith("event: problem")


def test_models_and_samples_are_listed(client):
    client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK))
    cards = {card["name"]: card for card in client.get("/v1/models").json()["models"]}
    assert set(cards) == {"words", "kept", "attributes"}
    assert cards["words"]["loaded"]
    assert (cards["words"]["seeded"], cards["kept"]["seeded"]) == (True, False)
    assert cards["words"]["steps"] == 4
    assert {v["name"] for v in cards["attributes"]["variables"]} == {"scanner", "sex"}
    samples = client.get("/v1/samples").json()
    assert [sample["name"] for sample in samples] == ["sample-1", "sample-2"]
    file = client.get("/v1/samples/sample-2.png")
    assert file.headers["content-type"] == "image/png"
    assert base64_of(file.content) == samples[1]["image"]
    refused(client.get("/v1/samples/sample-3.png"), 404, "unknown-sample")


def test_without_a_key_nothing_is_told_but_health(client):
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
        response = client.get("/v1/models", headers=headers)
        refused(response, 401, "unauthorised")
        assert response.headers["www-authenticate"] == "Bearer"
        # A body is not even read.
        refused(client.post("/v1/images", content=b"x" * 1_000_000, headers=headers), 401, "unauthorised")
    for path in ("/healthz", "/readyz", "/openapi.json", "/problems/deadline"):
        response = client.get(path, headers={"Authorization": ""})
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "sent", "status", "kind"),
    [
        ("/v1/counterfactuals", {"content": b"{", "headers": JSON}, 400, "unreadable-body"),
        ("/v1/counterfactuals", {"content": b"\xff\xfe", "headers": JSON}, 400, "unreadable-body"),
        ("/v1/counterfactuals", {"content": b"[" * 100_000, "headers": JSON}, 400, "unreadable-body"),
        ("/v1/counterfactuals", {"content": b"[]", "headers": JSON}, 422, "invalid-request"),
        ("/v1/counterfactuals", {"content": b"x"}, 415, "unsupported-media-type"),
        ("/v1/counterfactuals", {"content": b"a" * 2_000_000, "headers": JSON}, 413, "too-large"),
        (
            "/v1/counterfactuals",
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            *(400, "unreadable-body"),
        ),
        (
            "/v1/counterfactuals",
            {"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            *(400, "unreadable-body"),
        ),
        ("/v1/counterfactuals", {"files": {"image": PICTURE}}, 400, "unreadable-body"),
        ("/v1/counterfactuals", {"files": {"image": PICTURE, "more": PICTURE}}, 400, "unreadable-body"),
        ("/v1/counterfactuals", form_of(PICTURE, **ASK, image="x"), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE, **{**ASK, "model": "../x"}), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE, **{**ASK, "model": "none"}), 404, "unknown-model"),
        ("/v1/counterfactuals", form_of(PICTURE, **ASK, do={"sex": 1}), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE, **ASK, unknown=1), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE, **ASK, seeds=[1, 1]), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE, **ASK, steps=0), 422, "invalid-request"),
        ("/v1/counterfactuals", form_of(PICTURE[:50], **ASK), 422, "unreadable-image"),
        ("/v1/counterfactuals", form_of(PICTURE + bytes(100_000), **ASK), 413, "too-large"),
        ("/v1/counterfactuals", {"json": {**ASK, "image": "not base64"}}, 422, "unreadable-image"),
        ("/v1/counterfactuals/..%2f..%2fetc", {"json": {"prompt": "edema"}}, 404, "not-found"),
        ("/v1/counterfactuals/xyz", {"json": {"prompt": "edema"}}, 422, "invalid-request"),
        ("/v1/audits", {"json": {}}, 422, "invalid-request"),
        ("/v1/nothing", {"json": {}}, 404, "not-found"),
        ("/v1/models", {"json": {}}, 405, "method-not-allowed"),
    ],
)
def test_bad_requests_are_problems(path, sent, status, kind, client):
    refused(client.post(path, **sent), status, kind)


def test_a_problem_does_not_repeat_what_was_sent(client):
    detail = refused(
        client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK, report="Jane Doe, 1950")),
        422,
        "invalid-request",
    )
    assert "Jane" not in detail
    assert "report" in detail


MANY = (
    b'{"model":"words","prompt":"x","image":"AAAA",' + b",".join(b'"%d":0' % n for n in range(10**6)) + b"}"
)
LONG = json.dumps({"model": "words", "image": base64_of(), "do": {"x" * 2_000_000: 1}}).encode()


@pytest.mark.parametrize(
    ("path", "content", "status", "said"),
    [
        ("/v1/counterfactuals", MANY[:120_000] + b"}", 400, "more than 1000 values"),
        ("/v1/images", MANY, 413, "at most 65536 bytes"),
        (f"/v1/counterfactuals/{'0' * 32}", MANY, 413, "at most 65536 bytes"),
        ("/v1/audits", MANY, 413, "at most 65536 bytes"),
        ("/v1/images", MANY[:60_000], 400, "more than 1000 values"),
    ],
)
def test_a_body_of_many_fields_is_refused_before_it_is_checked(path, content, status, said, roomy):
    started = time.perf_counter()
    response = roomy.post(path, content=content, headers=JSON)
    assert time.perf_counter() - started < 1
    kind = {400: "unreadable-body", 413: "too-large"}[status]
    assert said in refused(response, status, kind)


def test_a_million_fields_beside_an_image_cost_no_time(roomy):
    started = time.perf_counter()
    response = roomy.post("/v1/counterfactuals", content=MANY, headers=JSON)
    assert time.perf_counter() - started < 1
    refused(response, 400, "unreadable-body")
    form = {"files": {"image": ("image", PICTURE)}, "data": {"request": MANY.decode()}}
    refused(roomy.post("/v1/counterfactuals", **form), 400, "unreadable-body")


def test_a_problem_repeats_long_names_cut(roomy):
    detail = refused(roomy.post("/v1/counterfactuals", content=LONG, headers=JSON), 422, "invalid-request")
    assert "at most 100 characters" in detail
    assert len(detail) < 500


def test_a_wrong_seed_is_all_that_is_said_of_seeds(client):
    asked = {"model": "words", "prompt": "x", "seeds": [-1]}
    detail = refused(client.post("/v1/images", json=asked), 422, "invalid-request")
    assert detail == "seeds.0: Input should be greater than or equal to 0"
    detail = refused(client.post("/v1/images", json={**asked, "seeds": []}), 422, "invalid-request")
    assert "at least 1 item" in detail


def test_a_file_that_takes_too_long_is_a_problem_and_the_next_image_is_answered(models):
    app, key = local_app(models, uploads={"workers": 1, "decode_seconds": 0.5})
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).status_code == 200
        response = client.post("/v1/counterfactuals", **form_of(crowded_dicom(), **ASK))
        assert "uploads.decode_seconds = 0.5" in refused(response, 413, "too-large")
        started = time.perf_counter()
        assert client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).status_code == 200
        assert time.perf_counter() - started < 5


def test_audits_are_off_without_roots(client):
    asked = {"classifiers": ["x"], "generator": "words", "data": "d", "attributes": ["sex"]}
    refused(client.post("/v1/audits", json=asked), 404, "audits-off")
    refused(client.get(f"/v1/audits/{'0' * 32}"), 404, "audits-off")


def eventually(holds, seconds=10.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def audited(models, tmp_path, monkeypatch):
    """The application with audits, its settings, and its Ray jobs, which do not answer."""
    monkeypatch.setattr(app_module, "_AUDIT_SECONDS", 0.05)
    monkeypatch.setattr(app_module, "_KEY_SECONDS", 0.05)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text("{}")
    (tmp_path / "net.onnx").write_bytes(b"x")
    plain = {**models, "keys": str(tmp_path / "keys.json")}
    plain["audits"] = {"roots": [str(tmp_path)], "out": str(tmp_path / "out")}
    jobs = Jobs()
    jobs.away = requests.exceptions.ConnectionError("Connection refused")
    auditor = Auditor(Settings.model_validate(plain), RayJobs(jobs))
    app, key = local_app(plain, auditor=auditor)
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client, plain, jobs, auditor


def asked_of(plain, **asked):
    [root] = plain["audits"]["roots"]
    given = {"classifiers": [f"{root}/net.onnx"], "data": f"{root}/data", "generator": "exact"}
    return {**given, "attributes": ["sex"], **asked}


def test_an_audit_outlives_a_time_without_ray(audited):
    client, plain, jobs, _ = audited
    response = client.post("/v1/audits", json=asked_of(plain))
    assert response.status_code == 202, response.text
    audit = response.json()
    assert audit["state"] == "queued"
    jobs.away = None
    eventually(lambda: client.get(f"/v1/audits/{audit['id']}").json()["state"] == "running")
    jobs.away = requests.exceptions.ReadTimeout("read timed out")
    refused(client.get("/v1/audits"), 503, "unavailable")
    assert client.delete(f"/v1/audits/{audit['id']}").status_code == 204
    assert client.get("/v1/audits").json() == {"audits": []}
    jobs.away = None
    [job] = jobs.commands
    eventually(lambda: jobs.status[job] is Status.STOPPED)


def test_nothing_ends_the_loop_that_starts_audits(audited, monkeypatch, caplog):
    client, plain, jobs, auditor = audited
    broken = KeyError("patient 17")
    monkeypatch.setattr(auditor.records, "all", lambda: (_ for _ in ()).throw(broken))
    eventually(lambda: "look after the audits" in caplog.text)
    assert "patient 17" not in caplog.text
    monkeypatch.undo()
    jobs.away = None
    audit = client.post("/v1/audits", json=asked_of(plain)).json()
    jobs.forget()
    monkeypatch.setattr(app_module, "_AUDIT_SECONDS", 0.05)
    eventually(lambda: f"audit-{audit['id']}-2" in jobs.status)


def test_audits_are_found_by_the_owner_of_the_key_alone_and_keys_come_and_go(audited):
    client, plain, jobs, _ = audited
    jobs.away = None
    audit = client.post("/v1/audits", json=asked_of(plain)).json()
    headers = {"Authorization": f"Bearer {add_key(plain['keys'], 'bob')}"}
    eventually(lambda: client.get("/v1/models", headers=headers).status_code == 200)
    path = f"/v1/audits/{audit['id']}"
    assert client.get("/v1/audits", headers=headers).json() == {"audits": []}
    for call, where in ((client.get, path), (client.get, f"{path}/report.html"), (client.delete, path)):
        refused(call(where, headers=headers), 404, "unknown-audit")
    assert client.get(path).json()["state"] == "running"
    add_key(plain["keys"], "bob")
    eventually(lambda: client.get("/v1/models", headers=headers).status_code == 401)


@pytest.mark.parametrize("studies", [9, 10**7 + 1, 10**30])
def test_an_audit_is_of_a_number_of_studies_that_there_can_be(audited, studies):
    client, plain, _, _ = audited
    refused(client.post("/v1/audits", json=asked_of(plain, studies=studies)), 422, "invalid-request")


def test_numbers_for_prometheus(client):
    client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK))
    text = client.get("/metrics").text
    route = 'route="/v1/counterfactuals"'
    assert f'counterray_requests_total{{gateway="gateway",{route},status="200"}}' in text
    assert 'counterray_stage_seconds_count{gateway="gateway",model="words",stage="predict"}' in text
    assert "counterray_noise_bytes" in text


def test_the_document_describes_what_the_routes_read(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/counterfactuals"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    schemas = document["components"]["schemas"]
    assert {"CounterfactualRequest", "Intervention", "AuditRequest", "Problem", "Audit"} <= set(schemas)
    assert "{" not in json.dumps(schemas["Problem"]["properties"]["type"]["type"])
    text = json.dumps(document)
    for reference in set(part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
        assert reference in schemas


class Slow(LocalBackend):
    """A backend that takes its time."""

    ended = False

    async def make(self, model, work):
        await asyncio.sleep(60)

    async def watch(self, model, work):
        yield Preview(seed=0, step=1, steps=2, image="")
        try:
            await asyncio.sleep(60)
        finally:
            self.ended = True


def test_a_deadline_ends_a_request_and_a_rate_sends_away(models):
    backend = Slow(Settings.model_validate(models))
    app, key = local_app(models, backend=backend, limits={"deadline_seconds": 0.5, "rate": "2/minute"})
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        for _ in range(2):
            refused(client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)), 504, "deadline")
        response = client.get("/v1/models")
        refused(response, 429, "rate-limited")
        assert int(response.headers["retry-after"]) >= 1


def test_a_stream_says_that_its_time_is_over_and_its_work_ends(models):
    backend = Slow(Settings.model_validate(models))
    app, key = local_app(models, backend=backend, limits={"deadline_seconds": 4})
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    with TestClient(app, headers=headers) as client:
        events = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).text.strip().split("\n\n")
    assert [event.split("\n")[0] for event in events] == ["event: preview", "event: problem"]
    assert json.loads(events[1].split("data: ")[1])["type"] == "/problems/deadline"
    assert backend.ended


def test_a_request_keeps_the_name_that_the_proxy_gave_it_and_no_other(client):
    name = "9b2f6c1e-0d4a-4b6f-8a53-1d2e3f4a5b6c"
    named = client.get("/nothing", headers={"X-Request-Id": name})
    assert named.json()["instance"] == name
    assert "x-request-id" not in named.headers  # The proxy puts it on the answer.
    assert "Jane" not in client.get("/nothing", headers={"X-Request-Id": "Jane Doe"}).text


def test_an_image_also_comes_as_a_dicom_file_that_names_nobody(client):
    asked = {**ASK, "dicom": True, "seeds": [3, 4]}
    one = client.post("/v1/counterfactuals", **form_of(PICTURE, **asked)).json()
    again = client.post("/v1/counterfactuals", **form_of(PICTURE, **asked)).json()
    assert one["images"] == again["images"]
    files = [pydicom.dcmread(io.BytesIO(base64.b64decode(made["dicom"]))) for made in one["images"]]
    for file, made in zip(files, one["images"], strict=True):
        assert file.SyntheticData == "YES"
        assert file.PatientName == "SYNTHETIC"
        assert "cardiomegaly" in file.DerivationDescription
        assert one["provenance"]["checksum"] in file.DerivationDescription
        assert np.array_equal(file.pixel_array, pixels(made["image"]))
    assert files[0].SOPInstanceUID != files[1].SOPInstanceUID
    assert files[0].StudyInstanceUID == files[1].StudyInstanceUID
    plain = client.post("/v1/counterfactuals", **form_of(PICTURE, **ASK)).json()
    assert plain["images"][0]["dicom"] is None
