"""From the bytes of a request to what it asks for."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve.problems import ProblemError
from serve.schemas import CounterfactualRequest
from serve.settings import UploadSettings
from serve.uploads import read_base64

Asked = TypeVar("Asked", bound=BaseModel)

_MOST_PROBLEMS = 5
"""Wrong fields that an answer names."""


async def read_body(request: Request, schema: type[Asked]) -> Asked:
    """A JSON body.

    Raises:
        ProblemError: If it is something else, or not valid.
    """
    if _media_type(request) != "application/json":
        raise ProblemError("unsupported-media-type", f"Content-Type is {_media_type(request) or 'missing'}.")
    return parse(await request.body(), schema)


async def read_counterfactual(
    request: Request, settings: UploadSettings
) -> tuple[CounterfactualRequest, bytes]:
    """A request with its image file: all in JSON, or the parts ``request`` and ``image`` of a form.

    Raises:
        ProblemError: If it is something else, or not valid.
    """
    if _media_type(request) != "multipart/form-data":
        asked = await read_body(request, CounterfactualRequest)
        return asked, read_base64(asked.image, settings)
    try:
        form = await request.form(max_files=1, max_fields=1, max_part_size=1 << 20)
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
    # A name that the client chose may be anything: it is cut.
    said = [f"{'.'.join(map(str, detail['loc']))[:80] or 'body'}: {detail['msg']}" for detail in details]
    more = f"; and {len(said) - _MOST_PROBLEMS} more" if len(said) > _MOST_PROBLEMS else ""
    return ProblemError("invalid-request", "; ".join(said[:_MOST_PROBLEMS]) + more)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
