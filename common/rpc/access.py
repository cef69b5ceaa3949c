"""Whom a method admits, as its ``tally.options.v1.access`` in the .proto file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from common.identity.caller import Caller, Kind
from common.identity.errors import NotPermitted
from tally.options.v1 import access_pb2

USER_ID: Final = "user_id"
_KINDS: Final = {
    access_pb2.CALLER_USER: Kind.USER,
    access_pb2.CALLER_SERVICE: Kind.SERVICE,
    access_pb2.CALLER_OPERATOR: Kind.OPERATOR,
}

ServiceMethods = Mapping[str, frozenset[str]]
"""The methods (``package.Service/Method``) that each service's identity has, besides what the
contract admits it to."""


class MethodAccess:
    """Whom one method admits, and for which users."""

    def __init__(self, method: MethodDescriptor, service_methods: ServiceMethods) -> None:
        """Raises TypeError if the contract does not say whom the method admits."""
        self.name: Final = f"{method.containing_service.full_name}/{method.name}"
        callers = set(callers_of(method))
        if not callers:
            raise TypeError(f"/{self.name}: has no option tally.options.v1.access")
        self.is_public: Final = access_pb2.CALLER_PUBLIC in callers
        # A tuple: to find one of three is faster than to hash it.
        self._kinds = tuple(_KINDS[each] for each in callers if each in _KINDS)
        self._services = frozenset(
            identity for identity, methods in service_methods.items() if self.name in methods
        )
        field = method.input_type.fields_by_name.get(USER_ID)
        self.names_user: Final = field is not None
        """Whether its requests have a user_id."""
        self._user_is_optional = field is not None and field.has_presence

    def admit(self, caller: Caller) -> None:
        """Raise NotPermitted if the caller may not call the method at all."""
        if caller.kind not in self._kinds:
            raise NotPermitted(
                "This method does not admit callers of this kind.", caller=caller.kind.value
            )
        if caller.kind is Kind.SERVICE and caller.subject not in self._services:
            raise NotPermitted(
                "This service's identity does not have the method.", subject=caller.subject
            )

    def admit_user(self, caller: Caller, request: Message) -> None:
        """Raise NotPermitted if the caller may not call the method for the request's user."""
        if not self.names_user:
            return
        user_id: str = getattr(request, USER_ID)
        if caller.kind is Kind.USER:
            if user_id != caller.subject:
                raise NotPermitted("A user's token acts for its subject only: see user_id.")
        elif (
            self._user_is_optional
            and not request.HasField(USER_ID)
            and caller.kind is not Kind.OPERATOR
        ):
            raise NotPermitted("Only an operator may leave out user_id.")


def method_of(path: str) -> MethodDescriptor:
    """The descriptor of ``/package.Service/Method``. Raises TypeError if there is none."""
    service, _, name = path.removeprefix("/").partition("/")
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        raise TypeError(f"{path}: is not described, so it admits nobody") from None


def callers_of(method: MethodDescriptor) -> list[access_pb2.Caller.ValueType]:
    """The callers that the contract admits to a method; empty if it does not say."""
    return list(method.GetOptions().Extensions[access_pb2.access])
