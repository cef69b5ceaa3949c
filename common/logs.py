"""Structured logs on stderr, in one format for Tally and its libraries.

Each line has the time (UTC), the service and the replica. Passwords in URLs are masked everywhere,
also in exception texts; tracebacks have no local variables.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from typing import Final, Literal

import structlog
from structlog.typing import EventDict, Processor

_CONTROLS: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Characters that steer a terminal, end a line for some readers, or turn its direction. Tabs and
line feeds are in tracebacks; in fields structlog escapes them."""
_PASSWORD_IN_URL: Final = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)")

# Below these levels, lines of the libraries repeat what Tally's own lines and metrics report.
_LIBRARIES: Final = {
    "sqlalchemy": logging.WARNING,
    "grpc": logging.WARNING,
}


def configure(
    *,
    service: str,
    replica: str,
    level: str,
    output: Literal["json", "console"],
    also: Sequence[Processor] = (),
) -> None:
    """Send all logs of structlog and of the standard library, from ``level`` on, to stderr.

    ``also``: further processors that add fields to each line.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_names(service, replica),
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
    render: list[Processor] = [structlog.processors.JSONRenderer(default=str)]
    if output == "console":
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        render = [escape_controls, console]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_passwords,
                *render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def mask_passwords(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: ``scheme://user:password@`` becomes ``scheme://user:***@``."""
    for key, value in event.items():
        if isinstance(value, str):
            if "://" in value:
                event[key] = masked(value)
        elif isinstance(value, BaseException):
            event[key] = masked(repr(value))
    return event


def escape_controls(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: characters that would steer a terminal become escapes (``\\x1b``).

    JSON needs none: it escapes them itself.
    """
    for key, value in event.items():
        if isinstance(value, str) and _CONTROLS.search(value):
            event[key] = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    return event


def masked(text: str) -> str:
    """The text, with the passwords of URLs replaced by ``***``."""
    return _PASSWORD_IN_URL.sub(r"\g<before>***", text)


def _add_names(service: str, replica: str) -> Processor:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        event.setdefault("replica", replica)
        return event

    return add
