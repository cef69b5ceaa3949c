"""What is in each box of the picture: the values of panels, as rows of a table."""

from __future__ import annotations

import math
from typing import Final

from rich.table import Table
from rich.text import Text

from deploy.monitoring.views import contention, money, services
from deploy.watch.cells import (
    ALARM,
    figure,
    highest,
    longest,
    named,
    named_times,
    pairs,
    summed,
    table,
    time,
    total,
)
from deploy.watch.figures import BAD, GOOD, QUIET, number, seconds, share, sparkline, styled
from deploy.watch.history import SPARKS, History

NOT_SERVED: Final = frozenset(services.NOT_SERVED["code"].split("|"))
SAGA_STATES: Final = {
    "RUNNING": "going forward",
    "COMPENSATING": "giving back",
    "RESOLVING": "closed, giving back",
    "NEEDS_ATTENTION": "need attention",
}
PAYMENT_STATES: Final = {
    "PENDING": "confirming",
    "UNKNOWN": "unknown",
    "CONFIRMED": "refunding",
    "REFUND_REFUSED": "no refund",
}
FLOW: Final = {
    "orders/min": {"create": "CreateOrder", "pay": "PayOrder", "cancel": "CancelOrder"},
    "ledger/min": {
        "charge": "ChargeBalance",
        "deduct": "DeductBalance",
        "refund": "RefundDeduction",
        "bulk": "BatchWrite",
    },
    "coupons/min": {
        "issue": "IssueCoupon",
        "redeem": "RedeemCoupon",
        "restore": "RestoreCoupon",
    },
}
"""Words for the methods that move money, goods and coupons."""
REASONS_MAX, LANES_MAX, LISTED_MAX = 6, 7, 2


def calls(history: History) -> Table:
    """Calls per second, how they have changed, and how long they take."""
    made = table("", "calls/s", "", "50 %", "99 %", "open")
    rates = history.values(services.CALLS_BY_SERVICE)
    half, most = history.values(services.LATENCY), history.values(services.LATENCY, 1)
    in_flight = history.values(services.IN_FLIGHT)
    for group in sorted(rates):
        made.add_row(
            group[0],
            figure(rates[group]),
            sparkline(history.calls[group[0]], SPARKS),
            time(half.get(group, math.nan)),
            time(most.get(group, math.nan)),
            figure(in_flight.get(group, 0.0)),
        )
    return made


def service_level(history: History) -> Text:
    """The three figures of the objectives."""
    parts = []
    for name, panel, write in (
        ("not served", services.NOT_SERVED_SHARE, share),
        ("overload", services.OVERLOADED_SHARE, share),
        ("p99", services.FAST_ENOUGH, seconds),
    ):
        value = history.value(panel)
        parts.append(Text.assemble((f"{name} ", QUIET), styled(write(value), value, panel.limits)))
    return Text("  ").join(parts)


def reasons(history: History) -> Table:
    """Calls that did not end with OK; those that were not served are red."""
    made = table("", "calls/s")
    found = highest(history, services.REASONS)
    for (code, reason), rate in found[:REASONS_MAX]:
        bad = code in NOT_SERVED
        name = f"{code} {reason}" if bad else reason or code
        made.add_row(Text(name, BAD if bad else ""), figure(rate))
    if not found:
        made.add_row(Text("none", GOOD), "")
    return made


def lanes(history: History) -> Table:
    """The busiest lanes: commands that wait, that are decided per second and in one transaction,
    and that are decided again after a conflict, per second; faults are those of a minute.
    """
    made = table("lane", "waits", "oldest", "per s", "batch", "retry", "faults")
    waiting, oldest, sizes, conflicts = (
        history.values(panel)
        for panel in (
            contention.LANE_DEPTH,
            contention.LANE_AGE,
            contention.BATCH_SIZE,
            contention.CONFLICTS,
        )
    )
    faults = summed(history.values(contention.LANE_FAULTS), 0)
    rates = history.values(contention.LANE_RATE)
    for group in sorted(rates, key=lambda lane: (-rates[lane], lane))[:LANES_MAX]:
        made.add_row(
            group[0],
            figure(waiting.get(group, 0.0)),
            time(oldest.get(group, 0.0), contention.LANE_AGE.limits),
            figure(rates[group]),
            figure(sizes.get(group, math.nan)),
            figure(conflicts.get(group, 0.0)),
            figure(faults.get(group[0], 0.0), ALARM),
        )
    return made


def locks(history: History) -> Table:
    """The three lines of defence (Redis locks, versions, constraints), and what calls wait for."""
    made = pairs()
    keys, waits = history.values(contention.LOCK_KEYS), history.values(contention.LOCK_WAITS)
    made.add_row(
        "Redis/s",
        named(
            [(each, keys.get((each,), 0.0)) for each in ("held", "busy", "absent")],
            {"absent": ALARM},
        ),
    )
    made.add_row(
        "waits/s",
        named([(each, waits.get((each,), 0.0)) for each in ("released", "limit")]),
    )
    made.add_row(
        "locks p99",
        named_times(
            {
                "wait": longest(history, contention.LANE_LOCK_WAIT),
                "hold": longest(history, contention.LANE_LOCK_HOLD),
            }
        ),
    )
    made.add_row("conflicts/s", figure(total(history.values(contention.CONFLICTS))))
    made.add_row("deadlocks/min", figure(total(history.values(contention.DEADLOCKS)), ALARM))
    guards = [(group[0], rate) for group, rate in highest(history, contention.CONSTRAINTS)]
    made.add_row("constraints/min", named(guards[:LISTED_MAX]))
    made.add_row(
        "sessions",
        named(
            [
                ("in use", total(history.values(services.SESSIONS))),
                ("waiting", total(history.values(services.SESSION_WAITS))),
            ]
        ),
    )
    lag = longest(history, services.LOOP_LAG)
    made.add_row("loop lag", time(lag, services.LOOP_LAG.limits))
    return made


def sagas(history: History) -> Table:
    """Sagas that have not ended, by what they do."""
    counts, ages = history.values(money.SAGAS), history.values(money.SAGA_AGE)
    kinds = sorted({kind for kind, _ in counts})
    made = table("on their way", *(kind.lower().replace("_", " ") for kind in kinds), "the oldest")
    for state, meaning in SAGA_STATES.items():
        stuck = state == "NEEDS_ATTENTION"
        age = max((ages.get((kind, state), 0.0) for kind in kinds), default=math.nan)
        made.add_row(
            meaning,
            *(figure(counts.get((kind, state), 0.0), ALARM if stuck else None) for kind in kinds),
            time(age, money.STUCK_AGE.limits if stuck else None),
        )
    return made


def saga_ends(history: History) -> Table:
    """How sagas ended, and which of their steps fail."""
    made = pairs()
    ended = summed(history.values(money.ENDED), 1)
    shown = [(state.lower().replace("_", " "), ended[state]) for state in sorted(ended)]
    made.add_row("ended/min", named(shown, {"needs attention": ALARM}))
    failing = [(" ".join(group), rate) for group, rate in highest(history, money.STEPS_FAILED)]
    made.add_row("failing/min", named(failing[:LISTED_MAX]))
    failed = total(history.values(money.FAILED_UNDOS))
    made.add_row("failed undos", figure(failed, ALARM))
    return made


def audit(history: History) -> Text:
    """The last verdict on the books, and what stands in books that balance."""
    ages = history.values(money.AUDIT_AGE)
    if not ages:
        return Text("no verdict", QUIET)
    breaches = history.value(money.BREACHES)
    verdict = Text(f"{breaches:.0f} breaches", BAD) if breaches else Text("holds", GOOD)
    verdict.append(" ").append_text(time(min(ages.values()))).append(" ago", QUIET)
    for (currency,), amount_minor in sorted(history.values(money.STANDING).items()):
        if amount_minor and not breaches:
            verdict.append(f", {currency} {number(amount_minor)} stands")
    return verdict


def payments(history: History) -> Table:
    """Payments that are to be settled with the gateway, and what is bought and paid."""
    made = pairs()
    counts, ages = history.values(money.OPEN_PAYMENTS), history.values(money.OPEN_AGE)
    for state, meaning in PAYMENT_STATES.items():
        count, age = counts.get((state,), math.nan), ages.get((state,), math.nan)
        limits = money.UNKNOWN_AGE.limits if state == "UNKNOWN" else None
        text = figure(count)
        if count > 0:
            text.append(", the oldest ", QUIET).append_text(time(age, limits))
        made.add_row(meaning, text)
    made.add_row("audit", audit(history))
    rates = {
        group[0].rpartition("/")[2]: rate
        for panel in (money.ORDERS, money.LEDGER, money.COUPONS)
        for line in range(len(panel.lines))
        for group, rate in history.values(panel, line).items()
    }
    for title, words in FLOW.items():
        shown = [(word, rates.get(method, 0.0)) for word, method in words.items()]
        made.add_row(title, named((word, rate) for word, rate in shown if rate or word != "bulk"))
    replies = [(" ".join(group), rate) for group, rate in highest(history, money.GATEWAY)]
    made.add_row("gateway/min", named(replies[:LISTED_MAX]))
    half, most = (
        history.values(money.GATEWAY_SECONDS, line).get(("confirm",), math.nan) for line in (0, 1)
    )
    made.add_row("confirm in", named_times({"50 %": half, "99 %": most}))
    return made
