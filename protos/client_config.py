"""The service config that clients of any language are given: `protos/service_config.json`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from common.rpc import service_config

PUBLISHED: Final = Path(__file__).with_name("service_config.json")

GATEWAY_S: Final = 30.0
"""Time limit of a method that may have to wait for the payment gateway: an attempt has 20 s to
reach it, and is put back before a refusal is told (`docs/settings.md`). The service goes on
without the caller; the same request_id is told the outcome."""

TIMEOUTS_S: Final = {
    "tally.order.v1.OrderService.PayOrder": GATEWAY_S,
    "tally.order.v1.OrderService.CancelOrder": GATEWAY_S,
    "tally.payment.v1.PaymentService.ConfirmPayment": GATEWAY_S,
    "tally.payment.v1.PaymentService.CancelPayment": GATEWAY_S,
}


def services(described: FileDescriptorSet) -> list[ServiceDescriptor]:
    """The services of a descriptor set that holds its imports too, each before its users."""
    pool = DescriptorPool()
    for file in described.file:
        pool.Add(file)
    return [
        pool.FindServiceByName(f"{file.package}.{service.name}")
        for file in described.file
        for service in file.service
    ]


def text(described: Iterable[ServiceDescriptor]) -> str:
    """The published file for these services."""
    config = service_config.build(described, timeouts_s=TIMEOUTS_S)
    return json.dumps(config, indent=2) + "\n"
