"""The table of what happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from deploy.local.demo.findings import FINAL, Order
from deploy.local.demo.sale import Course
from deploy.local.demo.script import CURRENCY, PRINT, Script


def rows(script: Script, course: Course) -> Iterator[tuple[str, str]]:
    """What happened, and how often."""
    happened, found = course.happened, course.found
    counts = happened.counts
    charged = happened.charged_minor
    yield (
        "balances",
        (
            f"{len(charged)} users charged {charged.total():,} {CURRENCY}; "
            f"{sum(found.balances_minor.values()):,} {CURRENCY} left"
        ),
    )
    yield (
        "coupons",
        f"{counts['COUPON_ISSUED']} issued, {counts['COUPON_SOLD_OUT']} came too late",
    )
    yield (
        "limited print",
        (
            f"{found.products[PRINT].sold} of {script.stock(PRINT)} sold, "
            f"{counts['OUT_OF_STOCK']} orders found none left"
        ),
    )
    yield "orders", f"{len(found.orders)} placed: {_by_state(course)}"
    yield (
        "payments",
        (
            f"{counts['PAID']} made, {counts['PAYMENT_DECLINED']} declined, "
            f"{counts['GATEWAY_UNAVAILABLE']} put back and tried again, "
            f"{counts['ORDER_NOT_PAYABLE']} too late"
        ),
    )
    for prefix, outcomes in _cards(happened.cards):
        yield f"  {prefix}", ", ".join(f"{count} {how}" for how, count in outcomes)
    groups = happened.duplicates
    yield (
        "duplicates",
        (
            f"{sum(len(group.answers) for group in groups)} calls in {len(groups)} groups of one "
            f"intent; {sum(group.collapsed for group in groups)} collapsed"
        ),
    )
    repeated = ", ".join(f"{count} after {why}" for why, count in sorted(_why(course)))
    yield "calls", f"{course.calls.made:,} made; repeated: {repeated or 'none'}"
    yield (
        "killed",
        (
            f"{course.killed}, with {course.calls.open_at_kill} calls under way; the last of them "
            f"was answered after {course.calls.recovered_s:.1f} s"
        ),
    )


def _by_state(course: Course) -> str:
    found = Counter(order.state for order in course.found.orders)
    named = {
        Order.State.Name(state).removeprefix("STATE_").lower(): found[state]
        for state in sorted(FINAL | found.keys())
    }
    return ", ".join(f"{count} {name}" for name, count in named.items())


def _cards(cards: Counter[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    by_prefix: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (prefix, outcome), count in sorted(cards.items()):
        by_prefix[prefix].append((outcome.removeprefix("PAYMENT_").lower(), count))
    yield from by_prefix.items()


def _why(course: Course) -> Iterator[tuple[str, int]]:
    yield from course.calls.repeated.items()
