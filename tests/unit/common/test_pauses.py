"""The lines of a file of paused methods: which methods they name, and which are rejected."""

from __future__ import annotations

import re

import pytest

from common.rpc.pauses import BYTES_MAX, PauseFileRejected, methods_in

ORDER = "tally.order.v1.OrderService"
CREATE, PAY, CARTS = (
    f"/{ORDER}/CreateOrder",
    f"/{ORDER}/PayOrder",
    "/tally.order.v1.CartService/Get",
)
OWN = {ORDER: {CREATE, PAY}, "tally.order.v1.CartService": {CARTS}}


@pytest.mark.parametrize(
    ("text", "paused"),
    [
        ("", set()),
        ("\n  \n# nothing\n", set()),
        (f"{ORDER}/CreateOrder", {CREATE}),
        (f"  {CREATE}  # as in the metrics\r\n{ORDER}/PayOrder\n", {CREATE, PAY}),
        (ORDER, {CREATE, PAY}),
        (f"{ORDER}/PayOrder\n{ORDER}\ntally.order.v1.CartService", {CREATE, PAY, CARTS}),
        # Of other services, which check the name of the method.
        ("tally.balance.v1.BalanceService\ntally.payment.v1.PaymentService/Nothing", set()),
    ],
)
def test_lines_name_methods(text: str, paused: set[str]) -> None:
    assert methods_in(text.encode(), OWN) == paused


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (f"{ORDER}/CreateOrders".encode(), f"line 1: there is no {ORDER}/CreateOrders"),
        (b"# x\ntally.order.v1.OrdersService", "line 2: there is no tally.order.v1.OrdersService"),
        (b"tally.oder.v1.OrderService/PayOrder", "line 1: there is no tally.oder.v1"),
        (b"grpc.health.v1.Health/Check/x", "is neither package.Service nor"),
        (b"grpc.health.v1.Health", "line 1: there is no grpc.health.v1.Health"),
        (b"tally.order.v1.order_pb2.Order", "is neither"),
        (b"CreateOrder", "line 1: 'CreateOrder' is neither package.Service nor"),
        (f"{ORDER}.CreateOrder".encode(), "is neither"),
        (f"{ORDER}/CreateOrder {ORDER}/PayOrder".encode(), "is neither"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * (BYTES_MAX + 1), "has more than 65536 bytes"),
    ],
)
def test_a_file_that_names_nothing_is_rejected_whole(raw: bytes, reason: str) -> None:
    with pytest.raises(PauseFileRejected, match=re.escape(reason)):
        methods_in(raw, OWN)
