"""The table of what happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from deploy.local.demo.final_state import FINAL, FinalState, Order
from deploy.local.demo.sale import SaleOutcome
from deploy.local.demo.scenario import CURRENCY, PRINT, Scenario


def rows(scenario: Scenario, outcome: SaleOutcome, killed: str) -> Iterator[tuple[str, str]]:
    """What happened, and how often."""
    results, state, calls = outcome.results, outcome.state, outcome.calls
    counts, charged = results.counts, results.charged_minor
    yield (
        "balances",
        (
            f"{len(charged)} users charged {charged.total():,} {CURRENCY}; "
            f"{sum(state.balances_minor.values()):,} {CURRENCY} left"
        ),
    )
    yield (
        "coupons",
        f"{counts['issue']} issued, {counts['COUPON_SOLD_OUT']} came too late",
    )
    yield (
        "limited print",
        (
            f"{state.products[PRINT].sold} of {scenario.stock(PRINT)} sold, "
            f"{counts['OUT_OF_STOCK']} orders found none left"
        ),
    )
    yield "orders", f"{len(state.orders)} placed: {_by_state(state)}"
    yield (
        "payments",
        (
            f"{counts['pay']} made, {counts['PAYMENT_DECLINED']} declined, "
            f"{counts['GATEWAY_UNAVAILABLE']} compensated and tried again, "
            f"{counts['ORDER_NOT_PAYABLE']} too late"
        ),
    )
    by_prefix: dict[str, list[str]] = defaultdict(list)
    for (prefix, result), count in sorted(results.cards.items()):
        by_prefix[prefix].append(f"{count} {result.removeprefix('PAYMENT_').lower()}")
    for prefix, results_of_prefix in by_prefix.items():
        yield f"  {prefix}", ", ".join(results_of_prefix)
    groups = results.duplicates
    yield (
        "duplicates",
        (
            f"{sum(len(group.results) for group in groups)} calls in {len(groups)} groups of one "
            f"intent; {sum(group.collapsed for group in groups)} collapsed"
        ),
    )
    repeated = ", ".join(
        f"{count} after {error}" for error, count in sorted(calls.repeated.items())
    )
    yield "calls", f"{calls.made:,} made; repeated: {repeated or 'none'}"
    others, slow = calls.at_kill[False], calls.at_kill[True]
    yield (
        "killed",
        f"{killed}; {others.count} calls under way were answered within {others.answered_s:.1f} s",
    )
    if slow.count:
        yield (
            "",
            (
                f"and {slow.count} by cards that are slow without a kill too within "
                f"{slow.answered_s:.1f} s"
            ),
        )


def _by_state(state: FinalState) -> str:
    found = Counter(order.state for order in state.orders)
    return ", ".join(
        f"{found[value]} {Order.State.Name(value).removeprefix('STATE_').lower()}"
        for value in sorted(FINAL | found.keys())
    )
