"""What is done by itself: by the channel, as published, and by this package on top of it.

The channel repeats what was UNAVAILABLE, where the contract says that it is safe. Here only that
is repeated which a channel cannot know of: a refusal that says when to come again (RetryInfo), for
which nothing was done. Nothing is repeated by both.
"""

from __future__ import annotations

import json
import random
from importlib import resources
from typing import Any, Final

import grpc

from common import service_config
from tally_client.errors import TallyError

_PUBLISHED: Final[dict[str, Any]] = json.loads(
    resources.files("protos").joinpath("service_config.json").read_text(encoding="utf-8")
)

CHANNEL: Final = service_config.without_timeouts(_PUBLISHED)
"""The service config of our channels; time limits are set here, call by call."""

TIMEOUTS_S: Final = service_config.timeouts_s(_PUBLISHED)
"""The default time limit of each unary method, by its path."""

_REPEATED: Final = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED})
_WAIT_FIRST_S: Final = 0.05
_WAIT_MAX_S: Final = 2.0


def wait_s(error: TallyError, repetitions: int) -> float | None:
    """How long to wait before the call is sent again; None if it is not.

    At least what the service asked for, and on top of it a wait that grows with ``repetitions``
    and differs from client to client, so that those who were refused together do not come back
    together.
    """
    if error.retry_after_s is None or error.code not in _REPEATED:
        return None
    return error.retry_after_s + _jittered(min(_WAIT_MAX_S, _WAIT_FIRST_S * 2.0**repetitions))


def resume_s(error: TallyError) -> float:
    """How long to wait before a stream that broke is taken up again."""
    return (error.retry_after_s or 0.0) + _jittered(_WAIT_FIRST_S)


def _jittered(wait_s: float) -> float:
    return wait_s * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets
