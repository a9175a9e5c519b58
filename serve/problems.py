"""Errors as clients see them: RFC 9457 problem details, each kind with what to do about it.

Reference: Nottingham et al., 2023, https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.data.pixels import Rejected
from counterray.evaluation.metric import UnscorableError
from counterray.models.generator import EditError, NoMatchError
from counterray.storage import StorageError
from serve.schemas import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        title: In a few words.
        status: HTTP status.
        remedy: What to do.
        retry: Whether the same request may succeed a little later; the answer then says when.
    """

    title: str
    status: int
    remedy: str
    retry: bool = False


KINDS: Mapping[str, Kind] = {
    "invalid-request": Kind("The request is not valid", 422, "Correct the fields named in detail."),
    "unreadable-body": Kind(
        "The body cannot be read", 400, "Send valid JSON, or multipart/form-data with the parts it needs."
    ),
    "unsupported-media-type": Kind(
        "This media type is not taken", 415, "Send application/json or multipart/form-data."
    ),
    "too-large": Kind("The request is too large", 413, "Send a smaller file; shrink or crop the image."),
    "unreadable-image": Kind(
        "The image cannot be used", 422, "Send one grey chest radiograph as PNG, JPEG or DICOM."
    ),
    "unauthorised": Kind(
        "A key is needed", 401, "Send the header Authorization: Bearer <key>; ask the operator for a key."
    ),
    "not-found": Kind("There is nothing here", 404, "Check the path against GET /openapi.json."),
    "method-not-allowed": Kind("The method is not allowed", 405, "Check it against GET /openapi.json."),
    "unknown-model": Kind("There is no such model", 404, "Take a name that GET /v1/models lists."),
    "unknown-noise": Kind(
        "The noise is not kept", 404, "It expired, made room, or was never there: send the image again."
    ),
    "unknown-sample": Kind("There is no such sample", 404, "Take a name that GET /v1/samples lists."),
    "unknown-audit": Kind("There is no such audit", 404, "Take an id that GET /v1/audits lists."),
    "edit-refused": Kind(
        "The model cannot make this", 422, "Ask for what GET /v1/models says that the model can set."
    ),
    "no-match": Kind(
        "The model cannot make this of this image", 422, "Ask for something else, or of another image."
    ),
    "nothing-inferred": Kind(
        "Nothing could be read from the image", 422, "Say in observed what is known of the image."
    ),
    "audit-refused": Kind("The audit cannot be run", 422, "Correct what detail names."),
    "audits-off": Kind("This server runs no audits", 404, "Ask the operator to set audits.roots."),
    "audit-not-done": Kind("The audit has no report yet", 409, "Wait until its state is succeeded."),
    "rate-limited": Kind(
        "Too many requests", 429, "Wait as long as Retry-After says, or ask for a higher rate.", retry=True
    ),
    "too-many-at-once": Kind(
        "Too many requests at once", 429, "Wait for the answers to your other requests.", retry=True
    ),
    "overloaded": Kind("The server is busy", 503, "Try again after Retry-After seconds.", retry=True),
    "unavailable": Kind(
        "What it needs cannot be reached now", 503, "Try again after Retry-After seconds.", retry=True
    ),
    "deadline": Kind(
        "It took too long", 504, "Ask for fewer seeds or steps, or try again when less is going on."
    ),
    "internal": Kind(
        "The server failed", 500, "Tell the operator the instance; it stands in the server's logs."
    ),
}
"""Every kind, by the last part of its type's path."""


@dataclass(eq=False)
class ProblemError(Exception):
    """An error for the client.

    Attributes:
        kind: One of `KINDS`.
        detail: What exactly is wrong here, without a patient's data.
        headers: Further headers of the answer.
    """

    kind: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.kind, self.detail)

    @property
    def status(self) -> int:
        """HTTP status."""
        return KINDS[self.kind].status

    def document(self, instance: str) -> Problem:
        """What is sent.

        Args:
            instance: Identifier of the request.
        """
        kind = KINDS[self.kind]
        return Problem(
            type=f"/problems/{self.kind}",
            title=kind.title,
            status=kind.status,
            detail=self.detail,
            remedy=kind.remedy,
            instance=instance,
        )


def problem_of(error: BaseException, *, doing: str) -> ProblemError:
    """The problem that an error is; one that is no fault of the request is logged, and its cause kept back.

    Args:
        error: What was raised.
        doing: What the server was at, without a patient's data, such as ``load model demo``.
    """
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, EditError):
        return ProblemError("edit-refused", str(error))
    if isinstance(error, NoMatchError):
        return ProblemError("no-match", str(error))
    if isinstance(error, Rejected):
        kind = "too-large" if error.reason == "too_large" else "unreadable-image"
        return ProblemError(kind, f"The image was refused: {error.reason}, {error.detail}.")
    if isinstance(error, BundleError | ConfigError | StorageError | UnscorableError):
        logger.error("could not %s: %s", doing, error)
        return ProblemError("unavailable", f"The server could not {doing}: {type(error).__name__}.")
    # Not the error's own text: it may quote what the client sent.
    logger.error("failed to %s: %s", doing, type(error).__name__, exc_info=_without_values(error))
    return ProblemError("internal", f"The server failed to {doing}.")


def _without_values(error: BaseException) -> BaseException:
    """The same traceback under an error whose text says nothing."""
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
