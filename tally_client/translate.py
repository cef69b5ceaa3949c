"""From gRPC's error to ours: by the reason, else by the code, else by whether anybody spoke."""

from __future__ import annotations

from typing import Final

import grpc

from common.errors import RemoteRefusal
from common.rpc.status import from_rpc_error
from tally_client import errors, policy, refusals

_KINDS: Final = {
    kind.code: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.ResourceExhausted,
        errors.Unavailable,
        errors.InternalError,
        errors.DeadlineExceeded,
    )
}
# What gRPC itself says when a connection fails, a proxy resets a stream (INTERNAL), or a server
# ends a call without a word.
_SILENCE: Final[dict[grpc.StatusCode, type[errors.TallyError]]] = {
    grpc.StatusCode.UNAVAILABLE: errors.NoAnswer,
    grpc.StatusCode.CANCELLED: errors.NoAnswer,
    grpc.StatusCode.UNKNOWN: errors.NoAnswer,
    grpc.StatusCode.INTERNAL: errors.NoAnswer,
}
_BY_REASON: Final = errors.BY_REASON
assert refusals.InsufficientFunds.reason in _BY_REASON, "the classes of reasons are registered"


def error_of(
    error: grpc.aio.AioRpcError, *, method: str, request_id: str, safe: bool
) -> errors.TallyError:
    """Our error for gRPC's. ``safe``: a repetition of the call has no effect of its own."""
    told = from_rpc_error(error)
    code = grpc.StatusCode[told.code.name]
    kind = _kind(told, code)
    if told.retry_after_s is not None:
        may_repeat = safe or code in policy.REPEATED
    else:
        may_repeat = safe and issubclass(kind, errors.OutcomeUnknown)
    return kind(
        told.message,
        code=code,
        reason=told.reason,
        metadata=told.metadata,
        fields=told.fields,
        quota=told.quota,
        retry_after_s=told.retry_after_s,
        method=method,
        request_id=request_id,
        may_repeat=may_repeat,
    )


def _kind(told: RemoteRefusal, code: grpc.StatusCode) -> type[errors.TallyError]:
    kind = _KINDS.get(code, errors.TallyError)
    if not told.reason:
        return _SILENCE.get(code, kind)
    # A reason under another code than the contract's: the code is what the promise hangs on.
    named = _BY_REASON.get(told.reason, kind)
    return named if named.code is code else kind
