"""Identity and access, in front of each method of a server where ``TALLY_AUTH=required``.

    size → identity → access → (rate limit → concurrency limit → …, ``common.rpc.handlers``)

Nothing is read from a database, a disk or the network here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import grpc
from google.protobuf.message import Message

from common.identity.caller import Caller
from common.identity.errors import TokenInvalid, TokenMissing
from common.identity.tokens import TokenVerifier
from common.rpc.access import MethodAccess, ServiceMethods, method_of
from common.rpc.client_address import ClientAddress
from common.rpc.reserved_ids import Refuse, refusal_of_reserved_ids
from common.rpc.validation import Parse, check_size, parse_message

AUTHORIZATION: Final = "authorization"
SCHEME: Final = "bearer"


class Admitted(NamedTuple):
    """A call that is admitted, before its request is validated."""

    request: Message
    caller: Caller | None
    """None for a public method, which reads no token."""
    refuse_reserved_ids: Refuse | None

    def check_ids(self) -> None:
        """Raise InvalidFields for a request_id of a saga's step, from all but the order service."""
        if self.refuse_reserved_ids is not None:
            self.refuse_reserved_ids(self.request)


class Guard:
    """Builds what stands in front of each method."""

    def __init__(
        self, verifier: TokenVerifier, service_methods: ServiceMethods, addresses: ClientAddress
    ) -> None:
        self._verifier = verifier
        self._service_methods = service_methods
        self._addresses = addresses

    def of(self, method: str, parse: Parse, bytes_max: int) -> MethodGuard:
        """The guard of one method. Raises TypeError if the contract admits nobody to it."""
        described = method_of(method)
        access = MethodAccess(described, self._service_methods)
        refuse = refusal_of_reserved_ids(described.input_type)
        return MethodGuard(
            self._verifier, access, refuse, self._addresses, parse=parse, bytes_max=bytes_max
        )


class OpenGuard:
    """Stands in front of one method where identity is off: it admits anyone."""

    def __init__(self, parse: Parse, bytes_max: int) -> None:
        self._parse = parse
        self._bytes_max = bytes_max

    def admit(self, raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> Admitted:  # noqa: ARG002
        """The request of a call. Raises InvalidField."""
        check_size(raw, self._bytes_max)
        return Admitted(parse_message(self._parse, raw), None, None)


class MethodGuard:
    """Stands in front of one method."""

    def __init__(
        self,
        verifier: TokenVerifier,
        access: MethodAccess,
        refuse_reserved_ids: Refuse | None,
        addresses: ClientAddress,
        *,
        parse: Parse,
        bytes_max: int,
    ) -> None:
        self._verifier = verifier
        self._addresses = addresses
        self._access = access
        self._refuse_reserved_ids = refuse_reserved_ids
        self._parse = parse
        self._bytes_max = bytes_max

    def admit(self, raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> Admitted:
        """The caller and the request of a call that is admitted.

        Raises InvalidField (the request is too large, or malformed), TokenMissing, TokenInvalid,
        TokenExpired, TooManyBadTokens and NotPermitted.
        """
        check_size(raw, self._bytes_max)
        if self._access.is_public:
            return Admitted(parse_message(self._parse, raw), None, None)
        caller = self._verifier.caller_of(token_of(context), self._addresses.peer(context))
        self._access.admit(caller)
        request = parse_message(self._parse, raw)
        self._access.admit_user(caller, request)
        return Admitted(request, caller, None if caller.runs_sagas else self._refuse_reserved_ids)


def token_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
    """The token in a call's metadata. Raises TokenMissing and TokenInvalid."""
    found = ""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION:
            if found:
                raise TokenInvalid("there are two of them")
            found = str(value)
    if not found:
        raise TokenMissing
    scheme, _, token = found.partition(" ")
    if scheme.lower() != SCHEME or not token:
        raise TokenInvalid("the metadata must be `authorization: Bearer <token>`")
    return token
