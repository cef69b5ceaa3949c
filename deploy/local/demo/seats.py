"""A concert that sells out: fans look at the map, order seats, and look again if they lose."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from deploy.local.demo.checks import Check
from deploy.local.demo.client import DemoClient
from deploy.local.demo.customer import won
from deploy.local.demo.output import Output
from tally.balance.v1 import balance_pb2
from tally.order.v1 import order_pb2
from tally.order.v1.order_pb2 import Seat
from tally_client import SeatTaken

ROWS: Final = "ABCDEF"
SEATS_A_ROW: Final = 20
LABELS: Final = [f"{row}-{number:02}" for row in ROWS for number in range(1, SEATS_A_ROW + 1)]
FANS: Final = 80
"""They want 200 seats, of which there are 120."""
SEAT_MINOR: Final = 50_000
SALE_S: Final = 60.0
"""Ten times as long as the sale takes."""
LOOK_S: Final = (0.0, 0.5)
"""How long a fan looks at the map before each order: time for others to be faster."""
_SIGNS: Final[dict[int, str]] = {
    Seat.STATE_FREE: "·",
    Seat.STATE_RESERVED: "o",
    Seat.STATE_SOLD: "#",
}


@dataclass(slots=True)
class Concert:
    """What the fans see, and what became of their orders."""

    product_id: str
    states: dict[str, int] = field(default_factory=dict)
    """The map, as WatchSeats sends it."""
    sold: dict[str, Sequence[str]] = field(default_factory=dict)
    """The seats of each paid order."""
    too_late: int = 0
    """Orders that were refused since another was faster."""
    left_out: int = 0
    """Fans who got no seat."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the map is that of a later version."""

    def free(self) -> list[str]:
        return [label for label in LABELS if self.states.get(label) == Seat.STATE_FREE]

    def lines(self) -> list[str]:
        """The map as text, a line for each row."""
        return [
            f"  {row}  "
            + " ".join(
                _SIGNS.get(self.states.get(label, 0), "?") for label in LABELS if label[0] == row
            )
            for row in ROWS
        ]

    @property
    def sold_out(self) -> bool:
        """Whether the map shows every seat as sold."""
        return [self.states.get(label) for label in LABELS] == [Seat.STATE_SOLD] * len(LABELS)

    async def until(self, shown: Callable[[], bool]) -> None:
        """Wait until the map shows something."""
        while not shown():
            self.changed.clear()
            await self.changed.wait()


async def sell_out(client: DemoClient, seed: int, output: Output) -> Concert:
    """Let all fans race for the seats, show the map meanwhile, and end when none is free.

    Without a map that follows the sale the fans do not know when to stop: if it does not come, or
    stays behind, the sale is broken off, and ``check_concert`` finds what is missing.
    """
    concert = Concert(await _open(client))
    selling = asyncio.create_task(_sell(client, concert, seed))
    watching = asyncio.create_task(_watch(client, concert, output))
    tasks = {selling, watching}
    try:
        await asyncio.wait(tasks, timeout=SALE_S, return_when=asyncio.FIRST_COMPLETED)
        if selling.done():
            selling.result()
        else:
            late = f"not sold out within {SALE_S:g} s"
            why = repr(watching.exception()) if watching.done() else late
            output.print(f"the concert is broken off: {why}")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    title = f"{'sold out' if concert.sold_out else 'broken off'}: {len(concert.sold)} orders"
    output.show_map(concert.lines(), title, last=True)
    return concert


async def _sell(client: DemoClient, concert: Concert, seed: int) -> None:
    """Begin when the map is complete, and end when it shows every seat as sold."""
    await concert.until(lambda: len(concert.states) == len(LABELS))
    await asyncio.gather(*(_fan(client, concert, number, seed) for number in range(FANS)))
    await concert.until(lambda: concert.sold_out)


async def _open(client: DemoClient) -> str:
    """Create the concert with its seats, and charge the fans' balances."""
    product = order_pb2.CreateProductRequest(
        name="Concert", price=won(SEAT_MINOR), stock=0, request_id="demo:concert"
    )
    created = await client.call(client.tally.product.create_product, product)
    product_id = created.product.product_id
    seats = order_pb2.AddSeatsRequest(
        product_id=product_id, labels=LABELS, request_id="demo:concert:seats"
    )
    await client.call(client.tally.product.add_seats, seats)
    charges = [
        balance_pb2.ChargeBalanceRequest(
            user_id=_name(number), amount=won(4 * SEAT_MINOR), request_id="demo:charge"
        )
        for number in range(FANS)
    ]
    items = [balance_pb2.BatchWriteItem(charge=charge) for charge in charges]
    await client.call(client.tally.balance.batch_write, balance_pb2.BatchWriteRequest(items=items))
    return product_id


async def _watch(client: DemoClient, concert: Concert, output: Output) -> None:
    shown = False
    request = order_pb2.WatchSeatsRequest(product_id=concert.product_id)
    async with aclosing(client.tally.seat.watch_seats(request)) as changes:
        async for change in changes:
            concert.states |= {seat.label: seat.state for seat in change.seats}
            if not change.version:
                continue
            concert.changed.set()
            taken = len(LABELS) - len(concert.free())
            # Where nothing can be drawn, half of the way is enough to see.
            if output.live or (not shown and 2 * taken >= len(LABELS)):
                shown = True
                output.show_map(concert.lines(), f"{taken} of {len(LABELS)} seats taken")


async def _fan(client: DemoClient, concert: Concert, number: int, seed: int) -> None:
    """Order 1 to 4 seats that the map shows as free, until there are none, and pay them."""
    chance = random.Random(seed * FANS + number)  # noqa: S311 - not for secrets
    wanted, attempt = 1 + number % 4, 0
    while True:
        await asyncio.sleep(chance.uniform(*LOOK_S))
        free = concert.free()
        if not free:
            concert.left_out += 1
            return
        first = chance.randint(0, max(0, len(free) - wanted))
        labels = free[first : first + wanted]
        attempt += 1
        request = order_pb2.CreateOrderRequest(
            user_id=_name(number),
            items=[
                order_pb2.OrderLine(
                    product_id=concert.product_id, quantity=len(labels), seats=labels
                )
            ],
            request_id=f"demo:seats:{attempt}",
        )
        try:
            made = await client.call(client.tally.order.create_order, request)
        except SeatTaken:
            concert.too_late += 1
            continue
        pay = order_pb2.PayOrderRequest(
            order_id=made.order.order_id, user_id=_name(number), request_id="demo:seats:pay"
        )
        await client.call(client.tally.order.pay_order, pay)
        concert.sold[made.order.order_id] = labels
        return


def _name(number: int) -> str:
    return f"fan-{number:03}"


async def check_concert(client: DemoClient, concert: Concert) -> Check:
    """Whether each seat is sold to one order, and every view of the seats agrees."""
    listed = client.tally.seat.list_seats.pages(
        order_pb2.ListSeatsRequest(product_id=concert.product_id, page_size=500)
    )
    states: dict[str, int] = {}
    async for page in listed:
        states |= {seat.label: seat.state for seat in page.seats}
    read = await client.call(
        client.tally.product.get_product,
        order_pb2.GetProductRequest(product_id=concert.product_id),
    )
    counts = (read.product.stock, read.product.reserved, read.product.sold)
    return Check(
        f"{len(LABELS)} seats sold to {len(concert.sold)} orders, each seat to one;"
        f" {concert.too_late} orders came too late, {concert.left_out} fans got none",
        list(_wrong(concert, states, counts)),
    )


def _wrong(concert: Concert, states: Mapping[str, int], counts: tuple[int, int, int]) -> list[str]:
    sold = Counter(label for labels in concert.sold.values() for label in labels)
    wrong = [f"seat {label} is in {count} orders" for label, count in sold.items() if count > 1]
    wrong += [f"seat {label} is in no order" for label in LABELS if label not in sold]
    if states != concert.states:
        wrong.append("the list of seats is not the map that was watched")
    if counts != (0, 0, len(LABELS)):
        wrong.append(f"{counts} free, reserved and sold")
    return wrong
