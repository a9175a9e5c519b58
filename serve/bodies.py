"""From the bytes of a request to what it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve.problems import ProblemError
from serve.schemas import CounterfactualRequest

Asked = TypeVar("Asked", bound=BaseModel)

_MOST_PROBLEMS = 5
"""Wrong fields that an answer names."""

MOST_BYTES = 64 << 10
"""Size of JSON without an image [bytes]."""

MOST_VALUES = 1000
"""Values in JSON at most: checking costs time and memory by their number. The largest valid request has some
hundreds."""


async def read_body(request: Request, schema: type[Asked]) -> Asked:
    """A JSON body without an image.

    Raises:
        ProblemError: If it is something else, too large, or not valid.
    """
    _require_json(request)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ProblemError("too-large", f"JSON without an image has at most {MOST_BYTES} bytes.")
    return parse(bytes(body), schema)


async def read_counterfactual(request: Request) -> tuple[CounterfactualRequest, bytes | str]:
    """A request with its image file: all in JSON, or the parts ``request`` and ``image`` of a form.

    Returns:
        The request, and the file's bytes, or its base64 as it was sent.

    Raises:
        ProblemError: If it is something else, or not valid.
    """
    if _media_type(request) != "multipart/form-data":
        _require_json(request)
        asked = await asyncio.to_thread(parse, await request.body(), CounterfactualRequest)
        return asked, asked.image
    try:
        form = await request.form(max_files=1, max_fields=1, max_part_size=MOST_BYTES)
    except HTTPException as error:
        raise ProblemError("unreadable-body", f"The form cannot be read: {error.detail}") from None
    try:
        file, said = form.get("image"), form.get("request")
        if not isinstance(file, UploadFile) or not isinstance(said, str) or len(form) != 2:
            raise ProblemError(
                "unreadable-body", "A form has two parts: the file image, and the field request with JSON."
            )
        data = await file.read()
    finally:
        await form.close()
    # The schema's own image is the one in base64; here the file stands for it.
    return parse(said.encode(), CounterfactualRequest, image="file"), data


def parse(body: bytes, schema: type[Asked], **fields: Any) -> Asked:
    """JSON as an object of a schema, with fields that come another way.

    Raises:
        ProblemError: With the fields that are wrong, never with what was sent.
    """
    # Each value but the first follows one of these, which base64 has none of.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise ProblemError("unreadable-body", f"The body has more than {MOST_VALUES} values.")
    try:
        if not fields:
            return schema.model_validate_json(body)
        given = _Object.model_validate_json(body).model_extra or {}
        if set(given) & set(fields):
            raise ProblemError("invalid-request", f"{', '.join(fields)}: send it in one way, not in two.")
        return schema.model_validate({**given, **fields})
    except ValidationError as error:
        raise _wrong(error) from None


class _Object(BaseModel, extra="allow"):
    """Any JSON object."""


def _wrong(error: ValidationError) -> ProblemError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if any(detail["type"] == "json_invalid" for detail in details):
        return ProblemError("unreadable-body", "The body is no valid JSON.")
    places = [detail["loc"] for detail in details]
    # A list of which a member is wrong is also told to be too short.
    details = [
        detail for detail in details if detail["type"] != "too_short" or not _within(detail["loc"], places)
    ]
    # A name that the client chose may be anything: it is cut.
    said = [
        f"{'.'.join(str(part)[:80] for part in detail['loc'])[:80] or 'body'}: {detail['msg']}"
        for detail in details
    ]
    more = f"; and {len(said) - _MOST_PROBLEMS} more" if len(said) > _MOST_PROBLEMS else ""
    return ProblemError("invalid-request", "; ".join(said[:_MOST_PROBLEMS]) + more)


def _within(place: tuple[int | str, ...], places: Sequence[tuple[int | str, ...]]) -> bool:
    """Whether one of the places lies below a place."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _require_json(request: Request) -> None:
    if _media_type(request) != "application/json":
        raise ProblemError(
            "unsupported-media-type", f"Content-Type is {_media_type(request)[:80] or 'missing'}."
        )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
