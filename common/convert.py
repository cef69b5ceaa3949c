"""Between protobuf's messages and the model's types, where every service needs the same."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from common.money import Money
from tally.type.v1 import money_pb2


def money_from(message: money_pb2.Money) -> Money:
    """The model's money; validation has seen the message before."""
    return Money(message.currency_code, message.amount_minor)


def money_to(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)


def time_to(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message
