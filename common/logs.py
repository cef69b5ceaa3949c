"""Structured logs on stderr, ours and the libraries' alike.

Each line carries the time (UTC), the service and the replica. Passwords inside URLs are masked
wherever they appear, exception texts included; tracebacks carry no local variables.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import EventDict, Processor

_PASSWORD_IN_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)")

# Below these levels the libraries tell what our own lines and metrics tell already.
_LIBRARIES = {"sqlalchemy": logging.WARNING, "grpc": logging.WARNING, "httpx": logging.WARNING}


def configure(
    *,
    service: str,
    replica: str,
    level: str,
    output: Literal["json", "console"],
    also: Sequence[Processor] = (),
) -> None:
    """Sends everything logged by structlog and by stdlib logging to stderr, from ``level`` on.

    ``also`` adds to each line.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _naming(service, replica),
        *also,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    render: Processor = structlog.processors.JSONRenderer(default=str)
    if output == "console":
        render = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_passwords,
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def mask_passwords(_: Any, __: str, event: EventDict) -> EventDict:
    """A structlog processor: ``scheme://user:password@`` becomes ``scheme://user:***@``."""
    for key, value in event.items():
        if isinstance(value, str):
            if "://" in value:
                event[key] = masked(value)
        elif isinstance(value, BaseException):
            event[key] = masked(repr(value))
    return event


def masked(text: str) -> str:
    """The text without the passwords of the URLs in it."""
    return _PASSWORD_IN_URL.sub(r"\g<before>***", text)


def _naming(service: str, replica: str) -> Processor:
    def add(_: Any, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        event.setdefault("replica", replica)
        return event

    return add
