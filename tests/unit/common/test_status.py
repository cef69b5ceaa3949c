"""Refusals are the same after gRPC, and a status fits into what a client accepts."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import (
    Code,
    DatabaseUnavailable,
    FieldViolation,
    InvalidFields,
    Overloaded,
    QuotaViolation,
    Refusal,
    RemoteRefusal,
    RequestIdReused,
)
from common.rpc import status
from common.rpc.validation import VIOLATIONS_MAX, check
from tally.order.v1 import order_pb2
from tally_client.rpc import answer

# Short enough not to be cut: at most four bytes a character.
SHORT = st.text(st.characters(codec="utf-8"), max_size=20)
REASON = st.from_regex(r"[A-Z][A-Z_]{0,30}", fullmatch=True)

REFUSALS = st.builds(
    RemoteRefusal,
    st.sampled_from(Code),
    REASON,
    SHORT.filter(bool),
    st.dictionaries(SHORT, SHORT, max_size=status.METADATA_MAX),
    fields=st.lists(st.builds(FieldViolation, SHORT, SHORT), max_size=status.FIELDS_MAX).map(tuple),
    quota=st.lists(st.builds(QuotaViolation, SHORT, SHORT), max_size=5).map(tuple),
    retry_after_s=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)


def rpc_error(
    code: grpc.StatusCode, message: str, *trailing: tuple[str, str | bytes]
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message
    )


def received(refusal: Refusal) -> RemoteRefusal:
    """The refusal as a client gets it: only the status and its code are sent."""
    sent = status.to_status(refusal)
    details = (answer.DETAILS_KEY, sent.SerializeToString())
    code = status.GRPC_CODES[sent.code]
    return status.from_rpc_error(rpc_error(code, sent.message, ("tally-replica", "one"), details))


@settings(max_examples=50)
@given(REFUSALS)
def test_a_refusal_is_the_same_after_grpc(refusal: RemoteRefusal) -> None:
    """Each detail occurs at most once, ErrorInfo always."""
    assert vars(received(refusal)) == vars(refusal)
    types = [detail.type_url for detail in status.to_status(refusal).details]
    assert len(types) == len(set(types))
    assert types[0] == "type.googleapis.com/google.rpc.ErrorInfo"


def test_all_of_a_hundred_quota_violations_are_named() -> None:
    names = [f"product:01a1fd79-a91a-74f1-878e-{number:012}" for number in range(100)]
    quota = tuple(QuotaViolation(name, "999999 free, 1000000 asked") for name in names)
    refusal = RemoteRefusal(Code.FAILED_PRECONDITION, "OUT", "ran out", {"id": "x" * 36})
    refusal.quota = quota
    assert [violation.subject for violation in received(refusal).quota] == names
    refusal.quota = quota[:40]
    assert received(refusal).quota == quota[:40]


@pytest.mark.parametrize("trailing", [[], [(answer.DETAILS_KEY, b"\xff\xff")]])
def test_without_a_readable_status_the_refusal_has_no_reason(
    trailing: list[tuple[str, bytes]],
) -> None:
    error = rpc_error(grpc.StatusCode.ABORTED, "no connection", *trailing)
    refusal = status.from_rpc_error(error)
    assert (refusal.code, refusal.reason, refusal.message) == (Code.ABORTED, "", "no connection")


def test_a_reason_of_another_domain_is_ignored() -> None:
    info = error_details_pb2.ErrorInfo(domain="elsewhere", reason="REQUEST_ID_REUSED")
    foreign = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no")
    foreign.details.add().Pack(info)
    assert status.from_status(foreign, Code.INVALID_ARGUMENT).reason == ""


BARE = {
    **dict.fromkeys((Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED), True),
    Code.INTERNAL: True,
    **dict.fromkeys((Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED, Code.UNKNOWN), False),
}


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (DatabaseUnavailable(), True),
        (Overloaded(), True),
        (RequestIdReused(), False),
        (InvalidFields([FieldViolation("a", "b")]), False),
        *((RemoteRefusal(code, "", "", {}), retryable) for code, retryable in BARE.items()),
        *((RemoteRefusal(code, "WITH_A_REASON", "", {}), False) for code in BARE),
    ],
)
def test_retryable_refusals(refusal: Refusal, expected: bool) -> None:
    assert status.is_retryable(refusal) is expected


def test_the_number_of_reported_violations_is_bounded() -> None:
    """Of the rules of the .proto files, all of which ``tests/integration/contract`` breaks."""
    request = order_pb2.CreateOrderRequest(user_id="u1", request_id="r1")
    for number in range(1_000):
        request.items.add(product_id=f"p{number}", quantity=0)
    with pytest.raises(InvalidFields) as caught:
        check(request)
    assert len(caught.value.fields) == VIOLATIONS_MAX
