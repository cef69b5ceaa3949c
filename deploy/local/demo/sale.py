"""The sale, from the creation of the products until the last order has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.local.demo.callers import Callers
from deploy.local.demo.checks import Check
from deploy.local.demo.client import CallStatistics, DemoClient
from deploy.local.demo.customer import Customer, Sale, won
from deploy.local.demo.final_state import FinalState, wait_for_final_state
from deploy.local.demo.output import WARNING, Output, Phase
from deploy.local.demo.results import SaleResults
from deploy.local.demo.scenario import COUPON_MINOR, PRICES_MINOR, Scenario
from deploy.local.demo.seats import check_concert, sell_out
from deploy.local.demo.watchdog import Watchdog
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally_client import Tally

KILL_AFTER: Final = 1 / 3
"""The share of the visits after which a replica is killed."""
CAMPAIGN_S: Final = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class SaleOutcome:
    """What happened in the sale."""

    results: SaleResults
    state: FinalState
    calls: CallStatistics
    concert: Check


async def hold_sale(
    scenario: Scenario,
    services: Mapping[str, Sequence[str]],
    callers: Callers,
    watchdog: Watchdog,
    output: Output,
) -> SaleOutcome:
    """Run all customers at once, kill a replica meanwhile, and wait until every order has ended."""
    statistics = CallStatistics()
    async with Tally(
        balance=services["balance"],
        coupon=services["coupon"],
        order=services["order"],
        payment=services["payment"],
        token=callers.token,
        on_repeat=statistics.note_repetition,
    ) as tally:
        client = DemoClient(tally, statistics, callers)
        sale = await _open(scenario, client)
        customers = [Customer(plan, sale) for plan in scenario.customers]
        phase = Phase(output, "charge balances", len(customers))
        await asyncio.gather(*(phase.counted(one.charge()) for one in customers))
        phase = Phase(output, f"race for {scenario.coupons} coupons", len(customers))
        await asyncio.gather(*(phase.counted(one.race_for_coupon()) for one in customers))

        concert = await sell_out(client, scenario.seed, output)
        visits = Phase(output, "order, pay, cancel", scenario.visits)

        def on_visit() -> None:
            visits.step()
            if watchdog.victim is None and visits.done >= scenario.visits * KILL_AFTER:
                statistics.note_kill()
                victim = watchdog.kill_one(scenario.seed)
                output.print(
                    f"kill -9 {victim.name} (pid {victim.pid}), "
                    f"{statistics.open_calls} calls are under way: "
                    "their clients repeat them by request_id",
                    WARNING,
                )

        await asyncio.gather(*(one.shop(on_visit) for one in customers))
        users = [plan.name for plan in scenario.customers]
        orders = len(sale.results.orders)
        ends = Phase(output, "every order ends", orders)
        state = await wait_for_final_state(sale, users, lambda moving: ends.reach(orders - moving))
        checked = await check_concert(client, concert)
        return SaleOutcome(sale.results, state, statistics, checked)


async def _open(scenario: Scenario, client: DemoClient) -> Sale:
    """Create the products and the campaign."""
    products = {}
    for number, (name, price_minor) in enumerate(PRICES_MINOR.items()):
        product = order_pb2.CreateProductRequest(
            name=name,
            price=won(price_minor),
            stock=scenario.stock(name),
            request_id=f"demo:product:{number}",
        )
        created = await client.call(client.tally.product.create_product, product)
        products[name] = created.product.product_id
    campaign = coupon_pb2.CreateCampaignRequest(
        name="Opening",
        quantity=scenario.coupons,
        fixed_discount=won(COUPON_MINOR),
        request_id="demo:campaign",
    )
    now_s = int(time.time())
    # It began yesterday: the database's clock decides whether it is open.
    campaign.start_time.seconds = now_s - CAMPAIGN_S
    campaign.end_time.seconds = now_s + CAMPAIGN_S
    campaign.coupon_lifetime.seconds = CAMPAIGN_S
    opened = await client.call(client.tally.coupon.create_campaign, campaign)
    return Sale(client, SaleResults(), products, opened.campaign.campaign_id)
