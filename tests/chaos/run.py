"""A run: rounds of faults under load, then healing, then the comparison with the books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.request_key import RequestKey
from tests.chaos.carts import FINAL, wrong_carts
from tests.chaos.clocks import Clocks
from tests.chaos.history import History, Outcome
from tests.chaos.load import Traffic
from tests.chaos.redemptions import ROWS, wrong_redemptions
from tests.chaos.schedule import SERVICES, Round, rounds
from tests.chaos.stack import ChaosStack, Faults, opened
from tests.chaos.tickets import ISSUED_BY_TICKET, by_user, wrong_tickets
from tests.chaos.verdict import (
    Ledger,
    Records,
    answered_while_away,
    kept_though_cancelled,
    out_of_order,
    wrong_replies,
)
from tests.faults.books import States, read, unfinished, wrong
from tests.faults.load import Customers, customers
from tests.faults.matrix import SETTINGS as CRASH_SETTINGS
from tests.faults.stack import beside

SETTINGS: Final = CRASH_SETTINGS | {
    "TALLY_PAYMENT_GATEWAY_BREAKER_PAUSE_S": "0.3",
    # Longer than a fault can delay a confirm: the simulator never closes a key.
    "TALLY_PAYMENT_CONFIRM_WINDOW_S": "10",
}
FINAL_LIMIT_S: Final = 90.0
"""Every order, saga and payment is final within this time of healing."""
DEFINITE_MIN: Final = 200
"""Calls with a definite reply in each round, without which a run proves nothing."""
PROGRESS: Final = (
    "ChargeBalance",
    "DeductBalance",
    "BatchWrite",
    "IssueCoupon",
    "BatchIssueCoupons",
    "CreateOrder",
    "PayOrder",
    "ConfirmPayment",
    "RedeemCoupon",
    "SetCartItem",
)
"""Methods that succeed again in each quarter without faults."""
LISTED_MAX: Final = 40
_POLL_S: Final = 0.2
_OPEN_PAYMENTS: Final = """
SELECT payment_key || ': ' || state AS line FROM payments WHERE state IN ('PENDING', 'UNKNOWN')
"""
_RECORDS: Final = "SELECT method, scope, request_id, state FROM answers"
_LEDGER: Final = """
SELECT user_id, kind, request_id, sequence, balance_after_minor FROM ledger_entries
"""
_DIRECT: Final = "SELECT order_id, state, amount_minor FROM payments WHERE order_id LIKE 'direct-%'"


@dataclass
class Result:
    """What came out of a run."""

    seed: int
    minutes: float
    replies: dict[Outcome, int]
    reasons: dict[str, int]
    requests: int
    repeated: int
    happened: dict[str, int]
    """Faults, by kind."""
    orders: int
    seconds: float
    violations: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    """Why the run proves nothing, if it does not."""

    @property
    def held(self) -> bool:
        return not (self.violations or self.invalid)

    @property
    def figures(self) -> str:
        """One line."""
        return (
            f"seed {self.seed}, {self.minutes:g} minutes: {self.requests:,} requests in "
            f"{_counted(self.replies)}, {self.orders:,} orders, "
            f"{sum(self.happened.values())} faults of {len(self.happened)} kinds, "
            f"{self.repeated:,} requests repeated at the end, "
            f"{len(self.violations)} violations, {self.seconds:.0f} s"
        )

    def lines(self) -> Iterator[str]:
        """All of it, the figures last."""
        for reason, count in self.reasons.items():
            yield f"{count:8,} {reason}"
        for violation in self.violations[:LISTED_MAX]:
            yield f"violation: {violation}"
        for why in self.invalid:
            yield f"invalid: {why}"
        if not self.held:
            yield _again(self.seed, self.minutes)
        yield self.figures


async def run(seed: int, minutes: float, data_dir: Path, report: Callable[[str], None]) -> Result:
    """One run on a new stack in ``data_dir``."""
    report(described(seed, minutes))
    clocks = Clocks.found(data_dir.with_name("clocks"))
    async with opened(data_dir, SETTINGS, clocks=clocks) as stack, customers(stack) as crowd:
        return await run_on(stack, crowd, seed, minutes, report)


def described(seed: int, minutes: float) -> str:
    """The schedule of a seed."""
    lines = [_again(seed, minutes)]
    for number, each in enumerate(rounds(seed, minutes), 1):
        lines += [f"round {number}", *(f"  {fault}" for fault in each.faults)]
    return "\n".join(lines)


async def run_on(
    stack: ChaosStack, crowd: Customers, seed: int, minutes: float, report: Callable[[str], None]
) -> Result:
    """One run with the customers of this stack."""
    began_s, finished = time.monotonic(), len(crowd.finished)
    planned, traffic = rounds(seed, minutes), Traffic(seed)
    faults = Faults(stack, traffic.repeat_some)
    if faults.left_out:
        report(f"left out, libfaketime is not there: {', '.join(faults.left_out)}")
    crowd.repeat = traffic.repeat
    async with beside(crowd.settle_refunds()):
        violations = await _under_load(crowd, traffic, faults, planned, report)
        violations += [*faults.deaths, *await _not_final(stack)]
    replies = dict(traffic.history.counts)
    # What was lost would be done anew by a repetition.
    records, ledger = await _books(stack)
    repeated = await traffic.repeat_answered()
    paid = await _paid_directly(stack)
    carts, redemptions = await read(stack, "order", FINAL), await read(stack, "coupon", ROWS)
    violations += [
        *wrong_replies(traffic.history, records),
        *answered_while_away(traffic.history, faults.without_standby),
        *wrong_carts(
            traffic.history.carts,
            {row["user_id"]: (row["version"], row["quantity"]) for row in carts},
        ),
        *wrong_redemptions(
            traffic.history,
            {(row["user_id"], row["request_id"]): row["live"] for row in redemptions},
        ),
        *wrong_tickets(
            traffic.history.tickets, by_user(await read(stack, "coupon", ISSUED_BY_TICKET))
        ),
        *out_of_order(traffic.history, ledger),
        *kept_though_cancelled(traffic.history, paid),
        *await wrong(stack, crowd.finished[finished:], paid),
        *await stack.differences(),
    ]
    return Result(
        seed=seed,
        minutes=minutes,
        replies=replies,
        reasons=dict(traffic.history.reasons.most_common()),
        requests=len(traffic.history.intents),
        repeated=repeated,
        happened=dict(faults.happened),
        orders=len(crowd.finished) - finished,
        seconds=time.monotonic() - began_s,
        violations=violations,
        invalid=_invalid(traffic.history, faults, len(planned)),
    )


async def _under_load(
    crowd: Customers,
    traffic: Traffic,
    faults: Faults,
    planned: Sequence[Round],
    report: Callable[[str], None],
) -> list[str]:
    """Every round; what made no progress in a quarter without faults."""
    stuck: list[str] = []
    load = asyncio.create_task(traffic.run(crowd))
    try:
        for number, round_ in enumerate(planned, 1):
            await faults.round(round_.faults)
            healed_s = time.monotonic()
            await asyncio.sleep(round_.quiet_s)
            stuck += await _no_progress(traffic.history, healed_s)
            report(f"round {number}: {_counted(traffic.history.counts)}")
    finally:
        traffic.stopping = True
        await load
        await traffic.all_ended()
    return stuck


async def _no_progress(history: History, healed_s: float) -> list[str]:
    """Methods that have not succeeded once within FINAL_LIMIT_S of healing."""
    while True:
        missing = [name for name in PROGRESS if history.succeeded_s.get(name, 0.0) < healed_s]
        if not missing or time.monotonic() > healed_s + FINAL_LIMIT_S:
            return [f"{name} has not succeeded since everything was healed" for name in missing]
        await asyncio.sleep(_POLL_S)


async def _not_final(stack: ChaosStack) -> list[str]:
    """Orders, sagas and payments that have not ended within FINAL_LIMIT_S."""
    until_s = time.monotonic() + FINAL_LIMIT_S
    left = await unfinished(stack, limit_s=FINAL_LIMIT_S)
    while payments := await read(stack, "payment", _OPEN_PAYMENTS):
        if time.monotonic() > until_s:
            break
        await asyncio.sleep(_POLL_S)
    return [*left, *(str(row["line"]) for row in payments)]


def _invalid(history: History, faults: Faults, rounds_: int) -> list[str]:
    """Why the run proves nothing, if it does not."""
    counts = history.counts
    definite = counts[Outcome.OK] + counts[Outcome.REFUSED]
    found = [f"never happened: {kind}" for kind in faults.missing]
    if definite < DEFINITE_MIN * rounds_:
        found.append(f"only {definite} calls had a definite reply")
    if not counts[Outcome.UNKNOWN]:
        found.append("no outcome was unknown")
    if not history.reasons["REQUEST_ID_REUSED"]:
        found.append("no request_id was used with another body")
    return found


async def _books(stack: ChaosStack) -> tuple[Records, Ledger]:
    records = {
        RequestKey(row["method"], row["scope"], row["request_id"]): str(row["state"])
        for service in SERVICES
        for row in await read(stack, service, _RECORDS)
    }
    ledger = {
        (row["user_id"], row["kind"], row["request_id"]): (
            row["sequence"],
            row["balance_after_minor"],
        )
        for row in await read(stack, "balance", _LEDGER)
    }
    return records, ledger


async def _paid_directly(stack: ChaosStack) -> States:
    """What merchants have paid without an order, as if each were one."""
    return {
        row["order_id"]: ("PAID", row["amount_minor"])
        if row["state"] == "CONFIRMED"
        else (row["state"], 0)
        for row in await read(stack, "payment", _DIRECT)
    }


def _again(seed: int, minutes: float) -> str:
    return f"run again: make test-chaos ARGS='--seed {seed} --minutes {minutes:g}'"


def _counted(replies: Mapping[Outcome, int]) -> str:
    """The calls, by outcome."""
    each = ", ".join(f"{replies.get(outcome, 0):,} {outcome.value}" for outcome in Outcome)
    return f"{sum(replies.values()):,} calls ({each})"
