"""The sale from the opening of the shop to the last order's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.local.demo.customers import Customer, Sale, won
from deploy.local.demo.findings import Findings, settled
from deploy.local.demo.happened import Happened
from deploy.local.demo.screen import Screen
from deploy.local.demo.script import COUPON_MINOR, PRICES_MINOR, Script
from deploy.local.demo.shop import Calls, Shop
from deploy.local.demo.trouble import Watch
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2

KILL_AFTER = 1 / 3
"""The part of the visits after which a replica is killed."""
CAMPAIGN_S = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Course:
    """How the sale went."""

    happened: Happened
    found: Findings
    calls: Calls
    killed: str


async def hold_sale(
    script: Script, services: Mapping[str, Sequence[str]], watch: Watch, screen: Screen
) -> Course:
    """Open the shop, let all customers in at once, kill a replica, wait until all is settled."""
    async with Shop(services) as shop:
        sale = await _open(script, shop)
        customers = [Customer(part, sale) for part in script.parts]
        with screen.phase("charge balances", len(customers)) as phase:
            await asyncio.gather(*(phase.counted(one.charge()) for one in customers))
        with screen.phase(f"race for {script.coupons} coupons", len(customers)) as phase:
            await asyncio.gather(*(phase.counted(one.race_for_coupon()) for one in customers))

        killed = ""
        visited = 0
        with screen.phase("order, pay, cancel", script.visits) as phase:

            def on_visit() -> None:
                nonlocal killed, visited
                phase.step()
                visited += 1
                if not killed and visited >= script.visits * KILL_AFTER:
                    shop.calls.note_kill()
                    victim = watch.kill_one(script.seed)
                    killed = victim.name
                    screen.warn(
                        f"kill -9 {victim.name} (pid {victim.pid}), {shop.calls.open_at_kill} "
                        "calls are under way: their clients repeat them by request_id"
                    )

            await asyncio.gather(*(one.shop(on_visit) for one in customers))
        found = await _settle(script, sale, screen)
        return Course(sale.happened, found, shop.calls, killed)


async def _open(script: Script, shop: Shop) -> Sale:
    """Put the products on sale and open the campaign."""
    products = {}
    for number, (name, price_minor) in enumerate(PRICES_MINOR.items()):
        product = order_pb2.CreateProductRequest(
            name=name,
            price=won(price_minor),
            stock=script.stock(name),
            request_id=f"demo:product:{number}",
        )
        created = await shop.ask(shop.tally.product.create_product, product)
        products[name] = created.product.product_id
    campaign = coupon_pb2.CreateCampaignRequest(
        name="Opening", quantity=script.coupons, request_id="demo:campaign"
    )
    campaign.fixed_discount.CopyFrom(won(COUPON_MINOR))
    now_s = int(time.time())
    # From yesterday on: whether it is open is for the database's clock to say.
    campaign.start_time.seconds = now_s - CAMPAIGN_S
    campaign.end_time.seconds = now_s + CAMPAIGN_S
    campaign.coupon_lifetime.seconds = CAMPAIGN_S
    opened = await shop.ask(shop.tally.coupon.create_campaign, campaign)
    return Sale(shop, Happened(), products, opened.campaign.campaign_id)


async def _settle(script: Script, sale: Sale, screen: Screen) -> Findings:
    users = [part.name for part in script.parts]
    orders = len(sale.happened.orders)
    with screen.phase("every order comes to its end", orders) as phase:
        return await settled(sale, users, lambda moving: phase.reach(orders - moving))
