"""docs/access.md: whom each method admits, written from the contract and the settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from common.rpc.access import USER_ID, callers_of
from common.settings import ServiceSettings
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.options.v1 import access_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2

FILES: Final[Sequence[FileDescriptor]] = (
    balance_pb2.DESCRIPTOR,
    coupon_pb2.DESCRIPTOR,
    order_pb2.DESCRIPTOR,
    payment_pb2.DESCRIPTOR,
)

INTRODUCTION: Final = """\
<!-- Written by `make docs` from the contract and the settings. Do not edit. -->

# Whom each method admits

With `TALLY_AUTH=required`, a call has a token, and the method's `tally.options.v1.access` in its
.proto file says whom it admits ([identity](guides/identity.md)):

- **user**: a person who acts for himself. `user_id` is the token's subject; another one is refused
  with NOT_PERMITTED before anything is read.
- **service**: another service, for any user, in the methods that its identity has
  (`TALLY_AUTH_SERVICES`). The order service has those marked *sagas*.
- **operator**: a person who runs the system, for any user. Only an operator may leave out a
  `user_id` that is optional.
- **public**: anyone. A token is not read.

Anyone else is refused with PERMISSION_DENIED / NOT_PERMITTED. Health checks admit everyone, and so
does reflection where it is served. With `TALLY_AUTH=off` every method admits everyone.

| method | user | service | operator | public |
|---|---|---|---|---|
"""


def page(settings: Sequence[type[ServiceSettings]]) -> str:
    """The whole page, as it has to be."""
    of_sagas = {name for one in settings for name in one.saga_methods}
    return INTRODUCTION + "".join(
        _row(method, sagas=_path(method) in of_sagas) for method in methods()
    )


def methods() -> Iterator[MethodDescriptor]:
    """Every method of the contract, in its order."""
    for file in FILES:
        for service in file.services_by_name.values():
            yield from service.methods


def _path(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def _row(method: MethodDescriptor, *, sagas: bool) -> str:
    texts = {
        access_pb2.CALLER_USER: f"own `{USER_ID}`",
        access_pb2.CALLER_SERVICE: "sagas; others by setting" if sagas else "by setting",
        access_pb2.CALLER_OPERATOR: "yes",
        access_pb2.CALLER_PUBLIC: "yes",
    }
    callers = callers_of(method)
    cells = [text if caller in callers else "" for caller, text in texts.items()]
    name = f"`{method.containing_service.name}/{method.name}`"
    return f"| {' | '.join([name, *cells])} |\n"
