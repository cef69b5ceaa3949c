"""What identity and access cost a call by themselves, in this process and without gRPC."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from common.identity.keys import parse_keys
from common.identity.tokens import TokenVerifier
from common.rpc.client_address import ClientAddress
from common.rpc.guard import Callers, Guard, OpenGuard
from deploy.local.identities import AUDIENCE, ISSUER, Issuer
from tally.balance.v1 import balance_pb2 as pb

if TYPE_CHECKING:
    import grpc

METHOD: Final = "/tally.balance.v1.BalanceService/GetBalance"
CALLS: Final = 20_000
ROUNDS: Final = 15
BYTES_MAX: Final = 1 << 20


class _Context:
    """All that is used of a call's context if the metadata is there and the token is good."""

    def peer(self) -> str:
        raise AssertionError("the address is for bad tokens")


def guard_us(issuer: Issuer, tokens: Sequence[str]) -> float:
    """Processor time of a call with a remembered token beyond one where identity is off.

    The tokens, ``user-0`` and so on, come in random order. In microseconds, of the least disturbed
    of several rounds.
    """
    verifier = TokenVerifier(
        issuer=ISSUER, audience=AUDIENCE, leeway_s=1.0, role_claim="role", saga_service="order"
    )
    verifier.use_keys(parse_keys(issuer.jwks().encode()))
    for token in tokens:
        verifier.caller_of(token, lambda: "")
    parse = pb.GetBalanceRequest.FromString
    guarded = Guard(Callers(verifier, ClientAddress(())), {}).of(METHOD, parse, BYTES_MAX)
    opened = OpenGuard(parse, BYTES_MAX)
    context = cast("grpc.aio.ServicerContext[bytes, bytes]", _Context())
    users = [random.randrange(len(tokens)) for _ in range(CALLS)]
    calls = [
        (
            pb.GetBalanceRequest(user_id=f"user-{user}", currency_code="KRW").SerializeToString(),
            (("user-agent", "grpc"), ("authorization", f"Bearer {tokens[user]}")),
        )
        for user in users
    ]

    def with_identity() -> None:
        for raw, metadata in calls:
            guarded.admit(raw, context, metadata)

    def without() -> None:
        for raw, metadata in calls:
            opened.admit(raw, context, metadata)

    return (_least_s(with_identity) - _least_s(without)) / CALLS * 1e6


def _least_s(run: Callable[[], None]) -> float:
    used = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        run()
        used.append(time.process_time() - begun)
    return min(used)
