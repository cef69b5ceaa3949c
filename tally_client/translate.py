"""From gRPC's error to a TallyError: by its reason, else by its code."""

from __future__ import annotations

from typing import Final

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]

from tally_client import errors, policy
from tally_client.rpc import answer
from tally_client.rpc.answer import Answer

# gRPC's own codes, without a service's answer: the connection failed, a proxy reset the stream
# (INTERNAL), or a server ended the call without a status of its own.
_NO_ANSWER: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


def to_tally_error(
    error: grpc.aio.AioRpcError, *, method: str, request_id: str, idempotent: bool
) -> errors.TallyError:
    """The TallyError for gRPC's error. ``idempotent``: sending the call again is safe."""
    return _error_of(
        answer.of_error(error), method=method, request_id=request_id, idempotent=idempotent
    )


def item_error(error: status_pb2.Status) -> errors.TallyError:
    """The TallyError for an item's ``error`` in the response of a bulk call.

    It is what the single call would have raised. If ``may_repeat`` is set, the item, or the whole
    bulk call, may be sent again with the same request_id.
    """
    received = answer.of_status(error, answer.CODES.get(error.code, grpc.StatusCode.UNKNOWN))
    return _error_of(received, method="", request_id="", idempotent=True)


def _error_of(
    received: Answer, *, method: str, request_id: str, idempotent: bool
) -> errors.TallyError:
    kind = _kind(received)
    if received.retry_after_s is not None:
        may_repeat = idempotent or received.code in policy.RETRYABLE
    else:
        may_repeat = idempotent and issubclass(kind, errors.OutcomeUnknown)
    return kind(
        received.message,
        code=received.code,
        reason=received.reason,
        metadata=received.metadata,
        fields=received.fields,
        quota=received.quota,
        retry_after_s=received.retry_after_s,
        method=method,
        request_id=request_id,
        may_repeat=may_repeat,
    )


def _kind(received: Answer) -> type[errors.TallyError]:
    code = received.code
    if not received.reason and code in _NO_ANSWER:
        return errors.NoAnswer
    by_code = errors.BY_CODE.get(code, errors.TallyError)
    by_reason = errors.BY_REASON.get(received.reason, by_code)
    # Under another code than the contract's the reason does not count: the code decides what the
    # caller can rely on.
    return by_reason if by_reason.code is code else by_code
