"""The caller of an RPC, as its token or certificate names it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
