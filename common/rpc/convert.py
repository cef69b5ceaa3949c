"""Converts between protobuf messages and the model's types: money and time."""

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
    """The model's money, from a validated message."""
    return Money(message.currency_code, message.amount_minor)


def money_to(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)


def fill_money(message: money_pb2.Money, currency_code: str, amount_minor: int) -> None:
    """Set a field of type Money in place, without a message to copy."""
    message.currency_code = currency_code
    message.amount_minor = amount_minor


def fill_time(message: Timestamp, time: datetime) -> None:
    """Set a field of type Timestamp in place, without a message to copy."""
    # FromDatetime takes three times as long, and most responses have several times.
    since = time - _EPOCH
    message.seconds = since.days * _S_PER_DAY + since.seconds
    message.nanos = since.microseconds * 1000


def time_to(time: datetime) -> Timestamp:
    message = Timestamp()
    fill_time(message, time)
    return message


def time_from(message: Timestamp, field: str) -> datetime:
    """The time, cut to microseconds, from a message whose seconds validation has checked.

    Raises InvalidField for ``field`` if nanos is not less than one second: the sum would be a time
    that validation has not checked.
    """
    # ToDatetime refuses nanoseconds.
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=_nanos(message, field) // 1000)


def microseconds_from(message: Duration, field: str) -> int:
    """The duration, at least 0, rounded up: a duration above zero must not become zero.

    Raises InvalidField for ``field`` if nanos is not less than one second.
    """
    return message.seconds * _US_PER_S - (-_nanos(message, field) // 1000)


def _nanos(message: Timestamp | Duration, field: str) -> int:
    if not 0 <= message.nanos < _NS_PER_S:
        raise InvalidField(field, f"nanos must be between 0 and {_NS_PER_S - 1}")
    return message.nanos
