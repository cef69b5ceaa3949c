"""A refusal survives the way over gRPC, and a status never outgrows what a client takes."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from hypothesis import given
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


def over_grpc(refusal: Refusal) -> RemoteRefusal:
    """As a client receives it: only the status and its code travel."""
    told = status.to_status(refusal)
    code = status.GRPC_CODES[told.code]
    trailing = grpc.aio.Metadata(
        ("tally-replica", "one"), (status.DETAILS_KEY, told.SerializeToString())
    )
    return status.from_rpc_error(
        grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=told.message)
    )


@given(REFUSALS)
def test_a_refusal_comes_back_as_it_was(refusal: RemoteRefusal) -> None:
    assert vars(over_grpc(refusal)) == vars(refusal)


@given(REFUSALS)
def test_each_detail_type_is_there_at_most_once_and_error_info_always(
    refusal: RemoteRefusal,
) -> None:
    types = [detail.type_url for detail in status.to_status(refusal).details]
    assert len(types) == len(set(types))
    assert types[0] == "type.googleapis.com/google.rpc.ErrorInfo"


def test_the_largest_status_fits_into_the_metadata_that_clients_take() -> None:
    long = "é" * 10_000
    refusal = RemoteRefusal(
        Code.INTERNAL,
        "REASON",
        long,
        {f"key_{number}": long for number in range(100)},
        fields=(FieldViolation(long, long),) * 100,
        quota=(QuotaViolation(long, long),) * 100,
        retry_after_s=1.0,
    )
    told = status.to_status(refusal)
    assert len(told.message.encode()) <= status.MESSAGE_BYTES_MAX
    # Binary metadata travels as base64, the message percent-encoded.
    on_the_wire = len(told.SerializeToString()) * 4 / 3 + 3 * len(told.message.encode())
    assert on_the_wire < 8 * 1024


def test_a_hundred_things_that_ran_out_are_all_named() -> None:
    names = [f"product:01a1fd79-a91a-74f1-878e-{number:012}" for number in range(100)]
    quota = tuple(QuotaViolation(name, "999999 free, 1000000 asked") for name in names)
    refusal = RemoteRefusal(Code.FAILED_PRECONDITION, "OUT", "ran out", {"id": "x" * 36})
    refusal.quota = quota
    told = over_grpc(refusal)
    assert [violation.subject for violation in told.quota] == names
    refusal.quota = quota[:40]
    assert over_grpc(refusal).quota == quota[:40]


def test_every_code_of_ours_has_its_grpc_code_and_number() -> None:
    for code in Code:
        number = code_pb2.Code.Value(code.name)
        assert status.GRPC_CODES[number] is grpc.StatusCode[code.name]


def test_metadata_that_is_no_status_leaves_the_code_and_no_reason() -> None:
    trailing = grpc.aio.Metadata((status.DETAILS_KEY, b"\xff\xff"))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, details="garbled"
    )
    refusal = status.from_rpc_error(error)
    assert (refusal.code, refusal.reason, refusal.message) == (Code.ABORTED, "", "garbled")


def test_an_error_without_metadata_is_a_silent_peer() -> None:
    refusal = status.from_rpc_error(
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="no connection")
    )
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "")


def test_a_reason_of_another_domain_is_not_taken_for_ours() -> None:
    told = status.to_status(RequestIdReused(request_id="r1"))
    info = error_details_pb2.ErrorInfo(domain="elsewhere", reason="REQUEST_ID_REUSED")
    foreign = status_pb2.Status(code=told.code, message="no")
    foreign.details.add().Pack(info)
    assert status.from_status(foreign, Code.INVALID_ARGUMENT).reason == ""


def test_what_may_be_repeated() -> None:
    assert status.may_repeat(DatabaseUnavailable())
    assert status.may_repeat(Overloaded())
    assert not status.may_repeat(RequestIdReused())
    assert not status.may_repeat(InvalidFields([FieldViolation("a", "b")]))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.UNAVAILABLE, True),
        (Code.DEADLINE_EXCEEDED, True),
        (Code.CANCELLED, True),
        (Code.UNIMPLEMENTED, False),
        (Code.RESOURCE_EXHAUSTED, False),
        (Code.UNKNOWN, False),
        (Code.INTERNAL, False),
    ],
)
def test_a_silent_peer_may_be_asked_again_where_that_can_help(code: Code, expected: bool) -> None:
    assert status.may_repeat(RemoteRefusal(code, "", "", {})) is expected
    assert not status.may_repeat(RemoteRefusal(code, "SAID_SOMETHING", "", {}))
