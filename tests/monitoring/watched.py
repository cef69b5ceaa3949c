"""A stack under light load, with its audit, and the Prometheus that watches it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy.engine import make_url

from deploy.local.monitors import AuditServer
from deploy.local.plan import AUDIT, audit_environment
from tally.balance.v1.balance_pb2 import ChargeBalanceRequest
from tally.order.v1 import order_pb2
from tally_client import Tally, TallyError
from tests.faults.stack import FaultyStack
from tests.monitoring.scene import Scene
from tests.support.balances import won

POLL_S: Final = 0.5
PAUSE_S: Final = 0.1


@dataclass(kw_only=True)
class Watched(Scene):
    """A stack, its audit, and the Prometheus that watches both."""

    stack: FaultyStack
    audit: AuditServer
    pause_file: Path
    objectives: Scene
    """The same under the rules of the objectives, with much shorter times."""
    card: str | None = "good_"
    """The prefix of the payment keys of the load. None: nobody buys."""

    def client(self) -> Tally:
        """A client of all services."""
        plan = self.stack.plan
        return Tally(
            balance=plan.addresses("balance"),
            coupon=plan.addresses("coupon"),
            order=plan.addresses("order"),
            payment=plan.addresses("payment"),
        )

    @asynccontextmanager
    async def superuser(self, service: str) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A connection to a service's database, of which no service knows."""
        url = make_url(self.stack.postgres.admin_url).set(database=f"tally_{service}")
        connection = await asyncpg.connect(url.render_as_string(hide_password=False))
        try:
            yield connection
        finally:
            await connection.close()

    def audit_all(self) -> None:
        """Let the audit check the whole books now."""
        assert self.audit.child is not None
        self.audit.child.send(signal.SIGHUP)


def audit_of(stack: FaultyStack) -> AuditServer:
    """The audit of a running stack, as `make up MONITORING=1` runs it, but for the gateway's side.

    The faults take the gateway away, and an audit that cannot ask it is repeated minutes later.
    """
    page_port = stack.plan.metrics_page_port(AUDIT)
    data_dir = stack.plan.data_dir
    server = AuditServer(data_dir / AUDIT, page_port, data_dir / f"logs/{AUDIT}-0.log")
    server.environment = audit_environment(
        stack.plan, dataclasses.replace(stack.backends, gateway_url="")
    )
    return server


async def keep_buying(watched: Watched) -> None:
    """Charge balances, place orders and pay them by balance and card, until cancelled."""
    async with watched.client() as tally:
        product = order_pb2.CreateProductRequest(
            name="Mug", price=won(1_000), stock=1_000_000, request_id="alerts:product"
        )
        product_id = (await tally.product.create_product(product)).product.product_id
        async with asyncio.TaskGroup() as group:
            for number in count():
                if watched.card is not None:
                    group.create_task(buy(tally, product_id, f"alerts:{number}", watched.card))
                await asyncio.sleep(PAUSE_S)


async def buy(tally: Tally, product_id: str, name: str, card: str) -> None:
    """One customer's charge, order and payment, whatever becomes of them."""
    with contextlib.suppress(TallyError):
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=name, amount=won(500), request_id=f"{name}:c")
        )
        placed = await tally.order.create_order(
            order_pb2.CreateOrderRequest(
                user_id=name,
                items=[order_pb2.OrderLine(product_id=product_id, quantity=1)],
                request_id=f"{name}:o",
            )
        )
        await tally.order.pay_order(
            order_pb2.PayOrderRequest(
                order_id=placed.order.order_id,
                user_id=name,
                balance_amount=won(500),
                payment_key=f"{card}{name}",
                request_id=f"{name}:p",
            ),
            timeout_s=30,
        )
