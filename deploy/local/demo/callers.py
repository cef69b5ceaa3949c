"""Whose token each call of the demo sends, where the stack asks for tokens."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from google.protobuf.message import Message

from common.rpc.access import USER_ID, callers_of, method_of
from deploy.local.identities import OPERATOR, TILL, TILL_METHODS, Identities
from tally.options.v1 import access_pb2

_caller: ContextVar[str] = ContextVar("caller", default="")


class Callers:
    """The tokens of customers, of an operator and of the till; none where none is needed."""

    def __init__(self, identities: Identities | None) -> None:
        self._identities: Final = identities
        self._tokens: dict[str, str] = {}

    def choose(self, path: str, request: Message) -> None:
        """Let the running task's next calls be those of whoever makes this one."""
        _caller.set(_caller_of(path, request))

    def token(self) -> str:
        """The token of the running task's next call; '' for none."""
        name = _caller.get()
        if self._identities is None or not name:
            return ""
        if name not in self._tokens:
            self._tokens[name] = self._identities.token_of(name)
        return self._tokens[name]


def _caller_of(path: str, request: Message) -> str:
    """The customer, for himself; the till, for its method; the operator, for everything else."""
    if path.removeprefix("/") in TILL_METHODS:
        return TILL
    admits_users = access_pb2.CALLER_USER in callers_of(method_of(path))
    return str(getattr(request, USER_ID)) if admits_users else OPERATOR
