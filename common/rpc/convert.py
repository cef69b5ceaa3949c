"""Between protobuf's messages and the model's types, where every service needs the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidField
from common.money import Money
from tally.type.v1 import money_pb2

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_S_PER_DAY: Final = 86_400
_US_PER_S: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


def money_from(message: money_pb2.Money) -> Money:
    """The model's money; validation has seen the message before."""
    return Money(message.currency_code, message.amount_minor)


def money_to(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)


def time_to(time: datetime) -> Timestamp:
    # Not FromDatetime, which takes three times as long: most answers carry several times.
    since = time - _EPOCH
    return Timestamp(
        seconds=since.days * _S_PER_DAY + since.seconds, nanos=since.microseconds * 1000
    )


def time_from(message: Timestamp, field: str) -> datetime:
    """The time, cut to microseconds; validation has seen to it that it is of a year there is.

    Raises InvalidField naming ``field`` if its nanos are not those of one second: what they add up
    to may be another time than the one that validation has seen.
    """
    # Not ToDatetime: it refuses what is finer than a microsecond.
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=_nanos(message, field) // 1000)


def microseconds_from(message: Duration, field: str) -> int:
    """A length of at least 0, rounded up: what is more than nothing must not become nothing.

    Raises InvalidField naming ``field`` if its nanos are not those of one second.
    """
    return message.seconds * _US_PER_S - (-_nanos(message, field) // 1000)


def _nanos(message: Timestamp | Duration, field: str) -> int:
    if not 0 <= message.nanos < _NS_PER_S:
        raise InvalidField(field, f"nanos must be between 0 and {_NS_PER_S - 1}")
    return message.nanos
