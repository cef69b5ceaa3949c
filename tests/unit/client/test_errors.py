"""The client's errors: a class for each reason of the contract, below the class of its code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, TypeVar

import grpc
import pytest

import tally_client
from common.errors import Code, FieldViolation, QuotaViolation, Refusal, RemoteRefusal
from common.rpc.status import to_status
from tally_client import errors, refusals
from tally_client.errors import BY_REASON, TallyError
from tally_client.rpc.answer import DETAILS_KEY
from tally_client.translate import to_tally_error
from tests.support.contract import OF_EVERY_SERVICE, REASONS

MODULES = (
    "common.errors",
    "common.deadlines",
    "common.identity.errors",
    "balance_service.errors",
    "coupon_service.errors",
    "order_service.errors",
    "payment_service.errors",
)

E = TypeVar("E", bound=Exception)


def subclasses(kind: type[E]) -> Iterator[type[E]]:
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def refusals_of_services() -> list[type[Refusal]]:
    """Every class of refusal that a service may return."""
    for module in MODULES:
        import_module(module)
    return [
        kind
        for kind in subclasses(Refusal)
        if kind.__module__ in MODULES and kind is not RemoteRefusal and kind.reason
    ]


def refusal(code: str, reason: str, **details: Any) -> RemoteRefusal:
    return RemoteRefusal(Code(code), reason, "No.", details.pop("metadata", {}), **details)


def raised(
    code: str, sent: Refusal | None = None, *, message: str = "No.", idempotent: bool = True
) -> TallyError:
    """The client's error after gRPC's code, with the status of a refusal if a service sent one."""
    trailing = grpc.aio.Metadata()
    if sent is not None:
        trailing.add(DETAILS_KEY, to_status(sent).SerializeToString())
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), trailing, message)
    return to_tally_error(error, method="/tally.x.v1.X/Do", request_id="r1", idempotent=idempotent)


def test_every_reason_of_the_contract_has_a_class() -> None:
    assert BY_REASON.keys() == REASONS | OF_EVERY_SERVICE
    assert {kind.reason for kind in refusals_of_services()} == BY_REASON.keys()


@pytest.mark.parametrize("kind", refusals_of_services(), ids=lambda kind: kind.__qualname__)
def test_refusal_of_a_service_is_raised_as_its_class(kind: type[Refusal]) -> None:
    code = kind.code.name
    error = raised(code, refusal(code, kind.reason, metadata={"user_id": "ada"}))
    assert type(error) is BY_REASON[kind.reason]
    assert (error.code.name, error.reason) == (code, kind.reason)
    assert error.metadata == {"user_id": "ada"}


@pytest.mark.parametrize("kind", refusals_of_services(), ids=lambda kind: kind.__qualname__)
def test_error_of_a_bulk_item_is_that_of_the_single_call(kind: type[Refusal]) -> None:
    sent = refusal(kind.code.name, kind.reason, metadata={"a": "b"}, retry_after_s=0.5)
    error = tally_client.item_error(to_status(sent))
    single = raised(kind.code.name, sent)
    ids = {"method": "", "request_id": ""}  # the caller has the item
    assert (type(error), vars(error)) == (type(single), vars(single) | ids)


def test_error_has_all_details_and_survives_pickling() -> None:
    sent = refusal(
        "RESOURCE_EXHAUSTED",
        "OVERLOADED",
        metadata={"a": "b"},
        fields=(FieldViolation("amount", "is odd"),),
        quota=(QuotaViolation("calls", "all taken"),),
        retry_after_s=0.5,
    )
    error = raised("RESOURCE_EXHAUSTED", sent)
    assert type(error) is tally_client.Overloaded
    assert (error.message, error.metadata) == ("No.", {"a": "b"})
    assert error.fields == (tally_client.FieldViolation("amount", "is odd"),)
    assert error.quota == (tally_client.QuotaViolation("calls", "all taken"),)
    assert error.retry_after_s == 0.5
    assert (error.method, error.request_id, error.may_repeat) == ("/tally.x.v1.X/Do", "r1", True)
    assert str(error) == "OVERLOADED: No. (Do, a=b, request_id=r1)"
    assert repr(error) == f"Overloaded({str(error)!r})"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy)) == (type(error), vars(error))


@pytest.mark.parametrize("reason", ["INVENTED_LATER", "COUPON_SOLD_OUT"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("FAILED_PRECONDITION", errors.FailedPrecondition),
        ("ABORTED", errors.Aborted),
        ("UNAVAILABLE", errors.Unavailable),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("UNIMPLEMENTED", TallyError),
    ],
)
def test_reason_unknown_or_under_another_code_is_raised_by_code(
    code: str, kind: type[TallyError], reason: str
) -> None:
    error = raised(code, refusal(code, reason))
    assert (type(error), error.reason) == (kind, reason)


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAVAILABLE", errors.NoAnswer),
        ("CANCELLED", errors.NoAnswer),
        ("UNKNOWN", errors.NoAnswer),
        # A proxy that lost its replica resets the stream, which gRPC reports as INTERNAL.
        ("INTERNAL", errors.NoAnswer),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        # Refusals by gRPC itself, such as a message that is too large.
        ("UNIMPLEMENTED", TallyError),
        ("UNAUTHENTICATED", errors.Unauthenticated),
        ("RESOURCE_EXHAUSTED", errors.ResourceExhausted),
    ],
)
def test_error_without_a_reason_may_be_repeated_if_the_outcome_is_unknown(
    code: str, kind: type[TallyError], idempotent: bool
) -> None:
    error = raised(code, idempotent=idempotent)
    assert (type(error), error.code.name, error.reason) == (kind, code, "")
    assert error.may_repeat is (idempotent and isinstance(error, errors.OutcomeUnknown))


@pytest.mark.parametrize(
    ("code", "reason", "idempotent", "may_repeat"),
    [
        # Nothing was done, whatever the method; the client itself retries these.
        ("RESOURCE_EXHAUSTED", "OVERLOADED", False, True),
        ("ABORTED", "CONFLICT_RETRIES_EXHAUSTED", False, True),
        # The commit may have succeeded.
        ("UNAVAILABLE", "DATABASE_UNAVAILABLE", False, False),
        ("UNAVAILABLE", "DATABASE_UNAVAILABLE", True, True),
    ],
)
def test_error_with_retry_info_may_be_repeated_without_a_second_effect(
    code: str, reason: str, idempotent: bool, may_repeat: bool
) -> None:
    error = raised(code, refusal(code, reason, retry_after_s=0.5), idempotent=idempotent)
    assert error.may_repeat is may_repeat


def test_internal_error_shows_its_id() -> None:
    error = raised("INTERNAL", refusal("INTERNAL", "INTERNAL", metadata={"error_id": "e1"}))
    assert type(error) is errors.InternalError
    assert "error_id=e1" in str(error)


def test_every_class_is_documented_exported_and_in_the_tree() -> None:
    assert errors.__doc__
    tree = set(re.findall(r"\b[A-Z]\w+", errors.__doc__.split("The classes of")[0]))
    kinds: list[type[TallyError]] = [TallyError, *subclasses(TallyError)]
    for kind in kinds:
        assert getattr(tally_client, kind.__name__) is kind
        assert kind.__name__ in tally_client.__all__
        assert kind.__name__ in tree
        assert kind.__doc__
        assert kind.__module__ in {errors.__name__, refusals.__name__}


def test_error_can_be_created_without_arguments() -> None:
    error = tally_client.OutOfStock()
    assert (error.reason, error.code) == ("OUT_OF_STOCK", grpc.StatusCode.FAILED_PRECONDITION)
    assert str(error) == "OUT_OF_STOCK"
