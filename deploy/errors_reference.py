"""docs/errors.md: how calls of each method may end, from the declarations of the servicers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from balance_service.servicer import BalanceServicer
from common.errors import Refusal
from common.rpc import reasons
from common.rpc.reasons import Reason
from coupon_service.servicer import CouponServicer
from deploy.next_steps import FINAL, NEXT_STEPS
from order_service.servicer.cart import CartServicer
from order_service.servicer.order import OrderServicer
from order_service.servicer.product import ProductServicer
from order_service.servicer.saga import SagaServicer
from order_service.servicer.seat import SeatServicer
from payment_service.servicer import PaymentServicer

SERVICERS: Final[tuple[type[object], ...]] = (
    BalanceServicer,
    CouponServicer,
    ProductServicer,
    SeatServicer,
    CartServicer,
    OrderServicer,
    SagaServicer,
    PaymentServicer,
)

INTRODUCTION: Final = """\
<!-- Written by `make docs` from the code. Do not edit. -->

# Errors

A refused call ends with a `google.rpc.Status`, whose `ErrorInfo` has the reason to switch on
([Tally over gRPC](guides/grpc.md)). *RetryInfo* is the delay after which the same call may
succeed; without it, most would be refused again. A write that is repeated with the same request_id
is carried out once.

The tables of the services have what each method is refused with besides the first table. gRPC
itself ends a call with CANCELLED or DEADLINE_EXCEEDED, without a reason, when its client is gone or
its deadline has passed; a lost connection has no reason either. In both cases the call may have had
its effect.

## Any method

*Not public* are the methods that need a token where identity is on ([access](access.md)). *Writes*
change something; most take a request_id. *Lists* take a page_token. An *item* is one of a bulk
call's, and has its error in its result.

| of | code | reason | RetryInfo | meaning | what the caller does |
|---|---|---|---|---|---|
"""
_HEADER: Final = """
## {service}

| method | code | reason | RetryInfo | meaning | what the caller does |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the contract, and the servicer's function that serves it."""

    descriptor: MethodDescriptor
    function: object

    @property
    def path(self) -> str:
        """The full name, as gRPC has it."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"


def methods() -> list[Method]:
    """All methods, in the order of the servicers and of the .proto files."""
    return [
        Method(descriptor, getattr(servicer, descriptor.name))
        for servicer in SERVICERS
        for descriptor in service_of(servicer).methods
    ]


def service_of(servicer: type[object]) -> ServiceDescriptor:
    """The service that a servicer implements, from its generated class."""
    generated = servicer.__bases__[0]
    package = generated.__module__.rpartition(".")[0]
    name = f"{package}.{generated.__name__.removesuffix('Servicer')}"
    return descriptor_pool.Default().FindServiceByName(name)


def package_of(declared: object) -> str:
    """The package that a class or function is in."""
    return str(getattr(declared, "__module__", "")).partition(".")[0]


def page() -> str:
    """The whole page, as it has to be. Raises KeyError for a reason without its next step."""
    meanings = _Meanings()
    text = INTRODUCTION + "".join(_common_rows(meanings))
    for servicer in SERVICERS:
        service = service_of(servicer)
        text += _HEADER.format(service=service.name)
        for descriptor in service.methods:
            text += "".join(_rows(meanings, descriptor, getattr(servicer, descriptor.name)))
    return text


class _Meanings:
    """The class of each refusal: of the method's own service if it has one of this reason."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], type[Refusal]] = {}
        for kind in _all_below(Refusal):
            # The first is the general one; the others add fields to it.
            self._kinds.setdefault((package_of(kind), kind.reason), kind)

    def of(self, package: str, reason: Reason) -> type[Refusal]:
        """Raises KeyError if no service and nothing in common has this reason."""
        name = reason.reason
        own = self._kinds.get((package, name)) or self._kinds.get(("common", name))
        others = [kind for (_, known), kind in self._kinds.items() if known == name]
        if own is None and not others:
            raise KeyError(name)
        return own or others[0]


def _common_rows(meanings: _Meanings) -> Iterator[str]:
    groups: Mapping[str, Iterable[type[Refusal]]] = {
        "any call": reasons.ANY_CALL,
        "not public": reasons.GUARDED,
        "writes": reasons.WRITE,
        "with request_id": reasons.WITH_REQUEST_ID,
        "lists": reasons.LIST,
        "streams": reasons.STREAM,
        "items": reasons.ITEM,
    }
    of: dict[Reason, list[str]] = {}
    for name, kinds in groups.items():
        for kind in kinds:
            of.setdefault(Reason(kind.code, kind.reason), []).append(name)
    for reason, names in of.items():
        kind = meanings.of("common", reason)
        yield _row(", ".join(names), reason, kind.retry_after_s, _meaning(kind))


def _rows(meanings: _Meanings, descriptor: MethodDescriptor, function: object) -> Iterator[str]:
    package, declared = package_of(function), reasons.declared(function)
    refusals = [(f"`{descriptor.name}`", each) for each in declared.call]
    refusals += [(f"`{descriptor.name}`: item", each) for each in declared.items]
    if not refusals:
        yield f"| `{descriptor.name}` | | | | Nothing besides the first table. | |\n"
    for name, refusal in refusals:
        kind = meanings.of(package, refusal) if isinstance(refusal, Reason) else refusal
        passed_on = package_of(kind) not in {package, "common"}
        # A refusal of another service is stored with the attempt, and has no RetryInfo.
        delay_s = None if passed_on else kind.retry_after_s
        yield _row(name, reasons.reason_of(refusal), delay_s, _meaning(kind))


def _meaning(kind: type[Refusal]) -> str:
    return (kind.__doc__ or "").strip().split("\n", 1)[0]


def _row(name: str, reason: Reason, retry_after_s: float | None, meaning: str) -> str:
    delay = "" if retry_after_s is None else f"{retry_after_s:g} s"
    next_step = NEXT_STEPS[reason.reason]
    if retry_after_s is None:
        next_step = FINAL.get(reason.reason, next_step)
    return f"| {name} | {reason.code} | `{reason.reason}` | {delay} | {meaning} | {next_step} |\n"


def _all_below(kind: type[Refusal]) -> Iterator[type[Refusal]]:
    for below in kind.__subclasses__():
        yield below
        yield from _all_below(below)
