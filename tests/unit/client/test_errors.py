"""Every reason of the contract has its class, under the kind that its code says."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib import import_module
from typing import TypeVar

import grpc
import pytest

import tally_client
from common import errors as common_errors
from common.errors import Refusal
from common.rpc.status import DETAILS_KEY, to_status
from tally_client import errors, refusals
from tally_client.errors import BY_REASON, TallyError
from tally_client.translate import error_of
from tests.unit.test_protos import REASONS

# Said of all services at once, and by the machinery around them.
EVERYWHERE = {
    "OVERLOADED",
    "INTERNAL",
    "DEADLINE_EXCEEDED",
    "DEADLINE_TOO_SHORT",
    "PEER_UNAVAILABLE",
    "REPLICA_NOT_READY",
    "REPLICA_STOPPING",
}
MODULES = (
    "common.errors",
    "common.deadlines",
    "common.rpc.handlers",
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


def told_by_services() -> list[type[Refusal]]:
    """Every class of refusal that a service defines, of which clients are told."""
    for module in MODULES:
        import_module(module)
    return [
        kind
        for kind in subclasses(Refusal)
        if kind.__module__ in MODULES and kind is not common_errors.RemoteRefusal and kind.reason
    ]


def rpc_error(
    code: grpc.StatusCode, message: str = "", refusal: Refusal | None = None
) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata()
    if refusal is not None:
        trailing.add(DETAILS_KEY, to_status(refusal).SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=message)


def translated(error: grpc.aio.AioRpcError, *, safe: bool = True) -> TallyError:
    return error_of(error, method="/tally.x.v1.X/Do", request_id="r1", safe=safe)


def test_every_reason_of_the_contract_has_its_class() -> None:
    assert BY_REASON.keys() == REASONS | EVERYWHERE


@pytest.mark.parametrize("refusal", told_by_services(), ids=lambda kind: kind.__qualname__)
def test_what_a_service_says_comes_as_its_class(refusal: type[Refusal]) -> None:
    told = common_errors.RemoteRefusal(refusal.code, refusal.reason, "No.", {"user_id": "ada"})
    error = translated(rpc_error(grpc.StatusCode[refusal.code.name], "No.", told))
    assert type(error) is BY_REASON[refusal.reason]
    assert (error.code.name, error.reason) == (refusal.code.name, refusal.reason)
    assert error.metadata == {"user_id": "ada"}


def test_what_services_say_is_all_of_it() -> None:
    told = {kind.reason for kind in told_by_services()}
    # Nothing limits the rate of callers yet; a silent peer is told of without a class of its own.
    assert told == BY_REASON.keys() - {"RATE_LIMITED", "PEER_UNAVAILABLE"}


def test_everything_that_was_said_is_there() -> None:
    told = common_errors.RemoteRefusal(
        common_errors.Code.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        "Come again.",
        {"a": "b"},
        fields=(tally_client.FieldViolation("amount", "is odd"),),
        quota=(tally_client.QuotaViolation("calls", "all taken"),),
        retry_after_s=0.5,
    )
    error = translated(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "Come again.", told))
    assert type(error) is tally_client.Overloaded
    assert (error.message, error.metadata) == ("Come again.", {"a": "b"})
    assert (error.fields, error.quota, error.retry_after_s) == (told.fields, told.quota, 0.5)
    assert (error.method, error.request_id, error.may_repeat) == ("/tally.x.v1.X/Do", "r1", True)
    assert str(error) == "OVERLOADED: Come again. (Do, a=b, request_id=r1)"
    assert repr(error) == f"Overloaded({str(error)!r})"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))


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
@pytest.mark.parametrize("reason", ["INVENTED_LATER", "COUPON_SOLD_OUT"])
def test_a_reason_that_is_new_or_under_another_code_comes_as_its_codes_kind(
    code: str, kind: type[TallyError], reason: str
) -> None:
    told = common_errors.RemoteRefusal(common_errors.Code(code), reason, "No.", {})
    error = translated(rpc_error(grpc.StatusCode[code], "No.", told))
    assert type(error) is kind
    assert error.reason == reason


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAVAILABLE", errors.NoAnswer),
        ("CANCELLED", errors.NoAnswer),
        ("UNKNOWN", errors.NoAnswer),
        # A proxy that lost its replica resets the stream, and gRPC makes INTERNAL of that.
        ("INTERNAL", errors.NoAnswer),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_without_an_answer_the_outcome_is_unknown(
    code: str, kind: type[TallyError], safe: bool
) -> None:
    error = translated(rpc_error(grpc.StatusCode[code], "connection reset"), safe=safe)
    assert type(error) is kind
    assert isinstance(error, errors.OutcomeUnknown)
    assert error.may_repeat is safe


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"])
def test_grpcs_own_refusals_are_no_reason_to_repeat(code: str) -> None:
    error = translated(rpc_error(grpc.StatusCode[code], "message too large"))
    assert (error.code.name, error.reason, error.may_repeat) == (code, "", False)
    assert not isinstance(error, errors.OutcomeUnknown)


@pytest.mark.parametrize(
    ("code", "reason", "safe", "may_repeat"),
    [
        # It says that nothing was done, and is repeated by the client too, whatever the method.
        ("RESOURCE_EXHAUSTED", "OVERLOADED", False, True),
        ("ABORTED", "CONFLICT_RETRIES_EXHAUSTED", False, True),
        # The commit may have gone through.
        ("UNAVAILABLE", "DATABASE_UNAVAILABLE", False, False),
        ("UNAVAILABLE", "DATABASE_UNAVAILABLE", True, True),
    ],
)
def test_what_may_be_repeated_is_what_has_no_second_effect(
    code: str, reason: str, safe: bool, may_repeat: bool
) -> None:
    told = common_errors.RemoteRefusal(
        common_errors.Code(code), reason, "No.", {}, retry_after_s=0.5
    )
    error = translated(rpc_error(grpc.StatusCode[code], "No.", told), safe=safe)
    assert error.may_repeat is may_repeat


def test_an_internal_error_names_its_id_in_the_text() -> None:
    told = common_errors.RemoteRefusal(
        common_errors.Code.INTERNAL, "INTERNAL", "Broken.", {"error_id": "e1"}
    )
    error = translated(rpc_error(grpc.StatusCode.INTERNAL, "Broken.", told))
    assert type(error) is errors.InternalError
    assert "error_id=e1" in str(error)


def test_the_tree_is_drawn_as_it_is() -> None:
    assert errors.__doc__
    drawn = set(re.findall(r"\b[A-Z][a-z]+[A-Za-z]+\b", errors.__doc__.split("The classes")[0]))
    ours = {kind.__name__ for kind in subclasses(TallyError)} | {"TallyError"}
    assert ours <= drawn


def test_every_class_is_exported_with_a_docstring() -> None:
    kinds: list[type[TallyError]] = [TallyError, *subclasses(TallyError)]
    for kind in kinds:
        assert getattr(tally_client, kind.__name__) is kind
        assert kind.__name__ in tally_client.__all__
        assert kind.__doc__
        assert kind.__module__ in {errors.__name__, refusals.__name__}


def test_an_error_can_be_made_in_a_callers_own_tests() -> None:
    error = tally_client.OutOfStock()
    assert (error.reason, error.code) == ("OUT_OF_STOCK", grpc.StatusCode.FAILED_PRECONDITION)
    assert str(error) == "OUT_OF_STOCK"
