"""The caller of an RPC, as its token or certificate names it, and that of the running call."""

from __future__ import annotations

import enum
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

SUBJECT: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
"""The form of a user_id: a subject of another form could act for nobody."""


class Kind(enum.StrEnum):
    """What a caller is. The values are those of the role claim, in lower case."""

    USER = "USER"
    """Acts for its subject only."""
    SERVICE = "SERVICE"
    """May name any user, in the methods that its identity has."""
    OPERATOR = "OPERATOR"
    """May name any user."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller that a verified token names, or the certificate of its connection."""

    kind: Kind
    subject: str
    """The token's ``sub``: a user_id, a service's identity, or an operator's name."""
    until_s: float
    """When the token expires, by ``time.monotonic``; infinite for a certificate."""
    runs_sagas: bool = False
    """Whether it is the order service, whose calls a saga's journal records."""

    @property
    def is_recorded(self) -> bool:
        """Whether each of its calls has a line in the log: it acts for others, and no journal
        records that."""
        return self.kind is not Kind.USER and not self.runs_sagas


_running: ContextVar[Caller | None] = ContextVar("tally_caller", default=None)


def start_call(caller: Caller | None) -> None:
    """Set the running call's caller; None: the method is public.

    It is never reset: each call runs in a task of its own, and the caller ends with its context.
    """
    _running.set(caller)


def running_caller() -> Caller | None:
    """The running call's caller; None if identity is off, or the method is public."""
    return _running.get()
