"""The error of the audit."""

from __future__ import annotations

from deploy.local.errors import RunnerError


class CannotAudit(RunnerError):  # noqa: N818 - a fact about the surroundings
    """The books cannot be read; the message is the one line to print."""
