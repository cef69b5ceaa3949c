"""Identity and access, in front of each method of a server where ``TALLY_AUTH=required``.

    size → identity → access → (rate limit → concurrency limit → …, ``common.rpc.handlers``)

Nothing is read from a database, a disk or the network here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import Message

from common.identity.caller import Caller, start_call
from common.identity.errors import TokenInvalid, TokenMissing
from common.identity.peers import PeerCertificates
from common.rpc.access import MethodAccess, ServiceMethods, method_of
from common.rpc.client_address import ClientAddress
from common.rpc.reserved_ids import Refuse, refusal_of_reserved_ids
from common.rpc.validation import Parse, check_size, parse_message

if TYPE_CHECKING:
    from common.identity.tokens import TokenVerifier

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

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

    def __init__(self, callers: Callers, service_methods: ServiceMethods) -> None:
        self._callers = callers
        self._service_methods = service_methods

    def of(self, method: str, parse: Parse, bytes_max: int) -> MethodGuard:
        """The guard of one method. Raises TypeError if the contract admits nobody to it."""
        described = method_of(method)
        access = MethodAccess(described, self._service_methods)
        refuse = refusal_of_reserved_ids(described.input_type)
        return MethodGuard(self._callers, access, refuse, parse, bytes_max)


class Callers:
    """Who calls: whom the token names; without a token, the certificate of the connection."""

    def __init__(
        self,
        verifier: TokenVerifier,
        addresses: ClientAddress,
        peers: PeerCertificates | None = None,
    ) -> None:
        """``peers``: whom the certificate of a connection names; None: there are none."""
        self._verifier = verifier
        self._addresses = addresses
        self._peers = peers

    def of(self, context: grpc.aio.ServicerContext[bytes, bytes], metadata: Metadata) -> Caller:
        """The caller of a call.

        Raises TokenMissing, TokenInvalid, TokenExpired, TooManyBadTokens and NotPermitted.
        """
        try:
            token = token_of(metadata)
        except TokenMissing:
            caller = None if self._peers is None else self._peers.caller_of(context.auth_context())
            if caller is None:
                raise
            return caller
        return self._verifier.caller_of(token, self._addresses.peer(context))


class OpenGuard:
    """Stands in front of one method where identity is off: it admits anyone."""

    def __init__(self, parse: Parse, bytes_max: int) -> None:
        self._parse = parse
        self._bytes_max = bytes_max

    def admit(
        self,
        raw: bytes,
        context: grpc.aio.ServicerContext[bytes, bytes],  # noqa: ARG002
        metadata: Metadata | None = None,  # noqa: ARG002
    ) -> Admitted:
        """The request of a call. Raises InvalidField."""
        check_size(raw, self._bytes_max)
        return Admitted(parse_message(self._parse, raw), None, None)


class MethodGuard:
    """Stands in front of one method."""

    def __init__(
        self,
        callers: Callers,
        access: MethodAccess,
        refuse_reserved_ids: Refuse | None,
        parse: Parse,
        bytes_max: int,
    ) -> None:
        self._callers = callers
        self._access = access
        self._refuse_reserved_ids = refuse_reserved_ids
        self._parse = parse
        self._bytes_max = bytes_max

    def admit(
        self,
        raw: bytes,
        context: grpc.aio.ServicerContext[bytes, bytes],
        metadata: Metadata | None = None,
    ) -> Admitted:
        """The caller, who is the running call's from then on, and the request of a call.

        ``metadata``: the call's, if it is there already; the context builds it anew.

        Raises InvalidField (the request is too large, or malformed), TokenMissing, TokenInvalid,
        TokenExpired, TooManyBadTokens and NotPermitted.
        """
        check_size(raw, self._bytes_max)
        if self._access.is_public:
            return Admitted(parse_message(self._parse, raw), None, None)
        if metadata is None:
            metadata = context.invocation_metadata() or ()
        caller = self._callers.of(context, metadata)
        # Before access: the log has the caller of a call that is refused from here on.
        start_call(caller)
        self._access.admit(caller)
        request = parse_message(self._parse, raw)
        self._access.admit_user(caller, request)
        return Admitted(request, caller, None if caller.runs_sagas else self._refuse_reserved_ids)


def token_of(metadata: Metadata) -> str:
    """The token in a call's metadata. Raises TokenMissing and TokenInvalid."""
    found = ""
    for key, value in metadata:
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
