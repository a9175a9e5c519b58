"""The OpenAPI document: what FastAPI knows of the routes, and the bodies that they read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serve.guard import API
from serve.problems import KINDS, MEDIA_TYPE
from serve.schemas import AuditRequest, CounterfactualRequest, Intervention, Problem, TextRequest

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/counterfactuals": CounterfactualRequest,
    "/v1/counterfactuals/{noise_id}": Intervention,
    "/v1/images": TextRequest,
    "/v1/audits": AuditRequest,
}
"""Path to the JSON that a POST takes."""

_REFERENCE = "#/components/schemas/"

_DESCRIPTION = (
    "Counterfactual chest radiographs, and audits by them. Every image is synthetic and no basis for a "
    "diagnosis. With `Accept: text/event-stream` a counterfactual comes as server-sent events: `preview` "
    "while it is made, then `answer`, or `problem`."
)


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an application, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        bodies: list[type[BaseModel]] = [*_BODIES.values(), Problem]
        for body in bodies:
            described = body.model_json_schema(ref_template=_REFERENCE + "{model}")
            schemas |= described.pop("$defs", {})
            schemas[body.__name__] = described
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                _complete(path, method, operation)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in sorted({kind.status for kind in KINDS.values()}):
        titles = " · ".join(kind.title for kind in KINDS.values() if kind.status == status)
        content = {MEDIA_TYPE: {"schema": {"$ref": f"{_REFERENCE}Problem"}}}
        responses[str(status)] = {"description": titles, "content": content}
    if path.startswith(API):
        operation["security"] = [{"key": []}]
    if method == "post" and path in _BODIES:
        json = {"schema": {"$ref": f"{_REFERENCE}{_BODIES[path].__name__}"}}
        content = {"application/json": json}
        if _BODIES[path] is CounterfactualRequest:
            content["multipart/form-data"] = {"schema": _FORM}
        operation["requestBody"] = {"required": True, "content": content}


_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["image", "request"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or DICOM file."},
        "request": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "A CounterfactualRequest without image, as JSON.",
        },
    },
}
