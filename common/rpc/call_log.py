"""One log line per call that ended, as ``TALLY_LOG_CALLS`` asks for it.

``errors``: calls that could not be served. A refusal by a rule (INSUFFICIENT_FUNDS, a taken seat, a
missing order) is the service's work, and no error; neither is a paused method, as an operator wants
it. ``all``: every call. ``off``: none.

Where identity is on, ``errors`` has each call of an operator too, and of a service other than the
order service: they act for users, and nothing else records who did. A call that a service may not
make is recorded of the order service too: no saga makes one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import islice
from typing import Final, Literal, TypeAlias

import structlog
from google.protobuf.message import Message

from common.errors import Code, Overloaded, Paused
from common.identity.caller import Caller, Kind
from common.identity.errors import NotPermitted
from common.rpc.bulk import user_of

LogCalls: TypeAlias = Literal["errors", "all", "off"]

ERRORS_PER_S_MAX: Final = 20
"""Lines of calls that could not be served. Under overload, a line costs as much as a refusal."""

_NOT_SERVED: Final = frozenset(
    {Code.INTERNAL.value, Code.UNKNOWN.value, Code.UNAVAILABLE.value, Code.DEADLINE_EXCEEDED.value}
)

_LOGGED_FIELDS: Final = ("request_id", "user_id")
USER_IDS_MAX: Final = 100
"""User ids of a bulk call's items in its line: about 7 KB. Longer lines may be cut by what collects
them."""

_log = structlog.stdlib.get_logger()


class CallLog:
    """The lines of one server's calls. ``begun_s``: by ``time.perf_counter``.

    ``request``: the valid request; None if there is none, or a stream of them.
    """

    def __init__(self, wanted: LogCalls) -> None:
        self.all: Final = wanted == "all"
        """Whether calls that succeed are logged as well."""
        self._errors: Final = wanted != "off"
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def write(  # noqa: PLR0917 - a keyword costs time in each call
        self,
        method: str,
        code: str,
        reason: str,
        begun_s: float,
        request: Message | None,
        caller: Caller | None = None,
    ) -> None:
        """Log a call, if it is to be logged. ``code``: gRPC's name; ``reason``: '' without one.

        ``caller``: None if identity is off, the method is public, or the caller is not known.
        """
        recorded = caller is not None and self._errors and _is_recorded(caller, reason)
        if code == "OK" and not (recorded or self.all):
            return
        error = (code in _NOT_SERVED and reason != Paused.reason) or reason == Overloaded.reason
        if not (self.all or recorded or (error and self._errors and self._has_room())):
            return
        fields: dict[str, object] = {}
        if caller is not None:
            fields["caller"], fields["subject"] = caller.kind.value, caller.subject
        for name in _LOGGED_FIELDS:
            if value := getattr(request, name, ""):
                fields[name] = value
        if items := getattr(request, "items", None):
            fields |= _of_items(items)
        _log.log(
            logging.WARNING if error else logging.INFO,
            "call",
            method=method,
            code=code,
            reason=reason,
            ms=round((time.perf_counter() - begun_s) * 1000, 1),
            **fields,
        )

    def _has_room(self) -> bool:
        """Whether this second has room for a line. The first line after it counts the others."""
        second = int(time.monotonic())
        if second != self._second:
            if self._left_out:
                _log.warning("calls_not_logged", calls=self._left_out)
            self._second, self._lines, self._left_out = second, 0, 0
        if self._lines >= ERRORS_PER_S_MAX:
            self._left_out += 1
            return False
        self._lines += 1
        return True


def _is_recorded(caller: Caller, reason: str) -> bool:
    return caller.is_recorded or (reason == NotPermitted.reason and caller.kind is not Kind.USER)


def _of_items(items: Sequence[Message]) -> dict[str, object]:
    """How many items a request has, and whom those of a bulk method are for."""
    users = (user for item in items if (user := user_of(item)) is not None)
    user_ids = list(islice(dict.fromkeys(users), USER_IDS_MAX))
    return {"items": len(items), "user_ids": user_ids} if user_ids else {"items": len(items)}
