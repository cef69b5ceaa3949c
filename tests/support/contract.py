"""The contract's files, methods and reasons, from the descriptors."""

from __future__ import annotations

from typing import Any, Final

import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.options.v1 import access_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1 import money_pb2

FILES: Final = tuple(
    module.DESCRIPTOR
    for module in (access_pb2, balance_pb2, coupon_pb2, money_pb2, order_pb2, payment_pb2)
)
SERVICES: Final = tuple(service for file in FILES for service in file.services_by_name.values())
METHODS: Final[tuple[MethodDescriptor, ...]] = tuple(
    method for service in SERVICES for method in service.methods
)
METHODS_BY_NAME: Final = {method.name: method for method in METHODS}
"""Each method by its name alone, which is unique in the contract."""
WITHOUT_REQUEST_ID: Final = {"SetCartItem", "ClearCart"}
"""Mutations that are not idempotent."""
BULK: Final = {"BatchWrite", "BatchIssueCoupons"}
"""Mutations of many items, each of which has a request_id and an error of its own."""
REASONS: Final = frozenset(
    """
    INVALID_FIELD CURRENCY_MISMATCH REQUEST_ID_REUSED INVALID_PAGE_TOKEN AMOUNT_EXCEEDS_DUE
    ACCOUNT_NOT_FOUND LEDGER_ENTRY_NOT_FOUND CAMPAIGN_NOT_FOUND COUPON_NOT_FOUND
    PRODUCT_NOT_FOUND ORDER_NOT_FOUND PAYMENT_NOT_FOUND SAGA_NOT_FOUND SEAT_NOT_FOUND
    TICKET_NOT_FOUND
    COUPON_ALREADY_ISSUED PAYMENT_KEY_USED SEAT_EXISTS
    INSUFFICIENT_FUNDS BALANCE_LIMIT_EXCEEDED DEDUCTION_CANCELLED CAMPAIGN_NOT_OPEN
    CAMPAIGN_QUEUED
    COUPON_NOT_USABLE COUPON_EXPIRED COUPON_WITHOUT_EFFECT ORDER_AMOUNT_TOO_SMALL
    REDEMPTION_CANCELLED OUT_OF_STOCK SEAT_TAKEN PRODUCT_SEATED PRODUCT_NOT_SEATED
    ORDER_NOT_PAYABLE ORDER_NOT_CANCELLABLE PAYMENT_KEY_REQUIRED PAYMENT_DECLINED
    PAYMENT_CANCELLED PAYMENT_METHOD_NOT_SUPPORTED PAYMENT_OUTCOME_DIFFERS REFUND_REFUSED
    SAGA_NOT_RETRYABLE
    REQUEST_IN_PROGRESS PAYMENT_IN_PROGRESS CART_CHANGED CONFLICT_RETRIES_EXHAUSTED
    COUPON_SOLD_OUT RATE_LIMITED QUEUE_FULL
    GATEWAY_UNAVAILABLE PAYMENT_OUTCOME_UNKNOWN DATABASE_UNAVAILABLE TICKET_LOST
    TOKEN_MISSING TOKEN_INVALID TOKEN_EXPIRED NOT_PERMITTED
    """.split()  # noqa: SIM905 - a list of strings would be one name a line
)
"""The reasons that the contract documents for its methods."""


def is_read(method: MethodDescriptor) -> bool:
    """Whether the method changes nothing, by its name."""
    return method.name.startswith(("Get", "List", "Watch"))


def is_list(method: MethodDescriptor) -> bool:
    """Whether the method returns pages, by its name."""
    return method.name.startswith("List")


def message_class(descriptor: Descriptor) -> Any:
    """The generated class of a message."""
    return GetMessageClass(descriptor)


every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
