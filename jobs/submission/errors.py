"""What goes wrong between here and a cluster."""

from __future__ import annotations


class SubmissionError(RuntimeError):
    """A job cannot be sent, found or followed; the message says why and what to do."""


class AwayError(SubmissionError):
    """The head does not answer now; it may later."""
