"""The contract's files, methods and reasons, from the descriptors."""

from __future__ import annotations

from typing import Any, Final

import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from common.rpc import reasons
from common.rpc.reasons import Reason
from deploy.errors_reference import Method, methods
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
OF_CALLERS: Final = frozenset(each.reason for each in reasons.GUARDED)
"""Reasons that the comment of each service names, for all of its methods."""
OF_EVERY_SERVICE: Final = frozenset(
    {
        *("OVERLOADED", "INTERNAL", "DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT"),
        *("PEER_UNAVAILABLE", "REPLICA_NOT_READY", "REPLICA_STOPPING", "PAUSED"),
        *OF_CALLERS,
    }
)
"""Reasons that comments in the .proto files do not name method by method."""


def refusals_of(method: Method) -> frozenset[Reason]:
    """All that calls of the method, and items of a bulk call, may be refused with."""
    ends = reasons.ends_of(method.path, method.function)
    items = reasons.ends_of_items(method.function) if method.descriptor.name in BULK else []
    return frozenset(end for end in (*ends, *items) if end.reason)


REASONS: Final = (
    frozenset(each.reason for method in methods() for each in refusals_of(method))
    - OF_EVERY_SERVICE
)
"""The reasons that comments in the .proto files name."""


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
