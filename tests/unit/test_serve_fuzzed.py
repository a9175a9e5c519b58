"""Requests drawn from the OpenAPI document: whatever comes, the answer is one that the document promises."""

import base64
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.auditor import Auditor
from serve.ray_jobs import RayJobs
from serve.settings import Settings
from tests.serve_jobs import Jobs
from tests.serve_world import file_of, local_app, radiograph, write_models

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PICTURE = base64.b64encode(file_of(radiograph())).decode()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzzed")
    audits = {"roots": [str(place)], "out": str(place / "audits"), "queued": 1000}
    return write_models(place) | {"audits": audits, "limits": {"rate": "100000/minute"}}


@pytest.fixture(scope="module")
def api(plain):
    auditor = Auditor(Settings.model_validate(plain), RayJobs(Jobs()))
    app, key = local_app(plain, samples=[radiograph(32, 1)], auditor=auditor)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema.config.headers = {"Authorization": f"Bearer {key}"}
    return schema


OPERATIONS = (
    ("POST", "/v1/counterfactuals"),
    ("POST", "/v1/counterfactuals/{noise_id}"),
    ("POST", "/v1/images"),
    ("GET", "/v1/models"),
    ("GET", "/v1/samples"),
    ("GET", "/v1/samples/{name}.png"),
    ("POST", "/v1/audits"),
    ("GET", "/v1/audits"),
    ("GET", "/v1/audits/{audit_id}"),
    ("GET", "/v1/audits/{audit_id}/report.html"),
    ("DELETE", "/v1/audits/{audit_id}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/problems/{kind}"),
)


def check(operation, examples, complete=lambda case: None):
    """Calls an operation with requests that the document allows."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def each(case):
        complete(case)
        case.call_and_validate(checks=CHECKS)

    each()


def test_all_operations_are_here(api):
    found = {(one.ok().method.upper(), one.ok().path) for one in api.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=" ".join)
def test_every_answer_is_one_that_the_document_promises(method, path, api):
    check(api[path][method], 25)


def test_audits_of_classifiers_and_data_that_there_are(api, plain):
    root = plain["audits"]["roots"][0]
    (Path(root) / "data").mkdir()
    (Path(root) / "data/manifest.json").write_text("{}")
    there = {"classifiers": plain["judges"], "data": f"{root}/data", "generator": "exact"}

    def complete(case):
        if isinstance(case.body, dict):
            case.body |= there

    check(api["/v1/audits"]["POST"], 25, complete)
    check(api["/v1/audits"]["GET"], 1)


def test_requests_of_a_model_and_an_image_that_there_are(api):
    made = []

    def complete(case):
        if isinstance(case.body, dict) and case.media_type == "application/json":
            case.body |= {"model": "words", "image": PICTURE}
            made.append(case)

    check(api["/v1/counterfactuals"]["POST"], 40, complete)
    assert made
