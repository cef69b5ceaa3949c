"""Types of settings: how each is written in a variable, and which values it may have.

Those that are URLs or addresses are in ``common.urls``.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_settings import NoDecode

from common.gcra import Rate


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "{}")
    except ValueError:
        raise ValueError("must be a JSON object") from None


_RATE: Final = re.compile(r"(?P<per_s>\d{1,5}(?:\.\d{1,3})?):(?P<burst>\d{1,7})")
PER_S_MAX: Final = 10_000
"""Of a limit: its interval in Redis is a whole number of microseconds, 100 at least."""


def _to_rate(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        return None
    form = _RATE.fullmatch(value)
    rate = Rate(float(form["per_s"]), int(form["burst"])) if form else Rate(0, 0)
    if not (0 < rate.per_s <= PER_S_MAX and rate.burst):
        raise ValueError(
            f"must be per second (0.001 to {PER_S_MAX}) and at once (1 or more), such as 20:200, "
            "or empty"
        )
    return rate


def rate(per_s: float, burst: int, description: str) -> Any:
    """A setting that is a limit of calls, or None."""
    return Field(default=Rate(per_s, burst), description=description)


RateSetting = Annotated[Rate | None, NoDecode, BeforeValidator(_to_rate)]
WORD: Final = r"^[!-~]{1,200}$"
MethodName = Annotated[
    str, StringConstraints(pattern=r"^tally(\.[a-z0-9]+)+\.[A-Za-z]+/[A-Za-z]+$")
]
"""A method's full name: ``tally.balance.v1.BalanceService/ChargeBalance``."""
ServiceName = Annotated[str, StringConstraints(pattern=WORD)]
ServiceMethods = Annotated[dict[str, list[MethodName]], NoDecode, BeforeValidator(_from_json)]
SpiffeId = Annotated[
    str, StringConstraints(pattern=r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$")
]
"""The URI in a certificate that names a program: ``spiffe://example.org/ns/tally/sa/order``."""
PeerServices = Annotated[dict[SpiffeId, ServiceName], NoDecode, BeforeValidator(_from_json)]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^(|/.*)$")]
"""A path from the root, or ''."""
Pooler: TypeAlias = Literal["none", "transaction"]
"""What is between a service and its database: nothing, or a pooler that gives each transaction
whichever session of the server is free."""


def seconds(default: float, description: str, *, most: float, least: float | None = None) -> Any:
    """A setting in seconds: above zero, or at least ``least``."""
    above = 0 if least is None else None
    return Field(default=default, gt=above, ge=least, le=most, description=description)


def count(default: int, description: str, *, most: int, least: int = 1) -> Any:
    """A setting that is a number of things."""
    return Field(default=default, ge=least, le=most, description=description)
