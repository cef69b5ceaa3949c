"""What a run of chaos finds wrong about carts, redemptions, and replies without a standby."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.request_key import RequestKey
from tests.chaos.carts import wrong_carts
from tests.chaos.clocks import STEP_S, Clocks
from tests.chaos.history import Call, CartCall, History, Intent, Outcome
from tests.chaos.redemptions import wrong_redemptions
from tests.chaos.verdict import answered_while_away
from tests.support.coupons import redeem, restore

SET = CartCall("ann", "SetCartItem", 0, 1, Outcome.OK, "", 7, None, version=1, quantity=7)
READ = replace(SET, method="GetCart", asked=0, start_s=2, end_s=3)
CLEARED = replace(SET, method="ClearCart", asked=0, expected=1, start_s=4, end_s=5)
LOST = replace(SET, outcome=Outcome.UNKNOWN, version=0, quantity=0, start_s=4, end_s=5)
CHANGED = replace(LOST, outcome=Outcome.REFUSED, reason="CART_CHANGED")


@pytest.mark.parametrize(
    ("calls", "final", "right"),
    [
        ([SET, READ], (1, 7), True),
        ([SET, READ], (1, 8), False),
        ([SET, READ], (2, 8), False),
        ([SET, READ, LOST], (2, 8), True),
        ([SET], (0, 0), False),
        ([replace(SET, quantity=6)], (1, 6), False),
        ([SET, replace(READ, version=0, quantity=0)], (1, 7), False),
        ([SET, replace(READ, version=0, quantity=0, start_s=0.5)], (1, 7), True),
        ([SET, replace(READ, quantity=8)], (1, 7), False),
        ([SET, replace(SET, asked=8, quantity=8)], (1, 7), False),
        ([SET, replace(CLEARED, version=2, quantity=0)], (2, 0), True),
        ([SET, replace(CLEARED, version=3, quantity=0), LOST], (3, 0), False),
        ([SET, replace(SET, expected=0, asked=8, version=2, quantity=8)], (2, 8), False),
        ([SET, replace(CHANGED, expected=0)], (1, 7), True),
        ([SET, replace(CHANGED, expected=1)], (1, 7), False),
    ],
)
def test_replies_about_a_cart_that_contradict_it_are_seen(
    calls: list[CartCall], final: tuple[int, int], right: bool
) -> None:
    assert (not list(wrong_carts(calls, {"ann": final}))) == right


REDEEM = RequestKey("RedeemCoupon", "ann", "r1")
RESTORE = RequestKey("RestoreCoupon", "ann", "x")
OK = Call(2, 3, Outcome.OK)


def redeemed(*, restored: bool = False, prevented: bool = False) -> History:
    intent = Intent(REDEEM, None, redeem("c", "ann", "r1"), [OK], prevented=prevented)
    history = History({REDEEM: intent})
    if restored:
        history.intents[RESTORE] = Intent(RESTORE, None, restore("c", "ann", "r1", "x"), [OK])
    return history


@pytest.mark.parametrize(
    ("history", "live", "right"),
    [
        (redeemed(), {"r1": True}, True),
        (redeemed(), {"r1": False}, False),
        (redeemed(), {}, False),
        (redeemed(), {"r1": True, "r2": False}, True),
        (redeemed(), {"r1": True, "r2": True}, False),
        (redeemed(prevented=True), {"r1": False}, True),
        (redeemed(prevented=True, restored=True), {"r1": False}, True),
        (redeemed(prevented=True, restored=True), {"r1": True}, False),
    ],
)
def test_a_redemption_that_contradicts_its_replies_is_seen(
    history: History, live: dict[str, bool], right: bool
) -> None:
    rows = {("ann", request_id): is_live for request_id, is_live in live.items()}
    assert (not list(wrong_redemptions(history, rows))) == right


@pytest.mark.parametrize(
    ("window", "right"), [((1, 4), False), ((2.5, 4), True), ((1, 2.5), True), ((4, 5), True)]
)
def test_a_reply_within_the_time_without_a_standby_is_seen(
    window: tuple[float, float], right: bool
) -> None:
    assert (not list(answered_while_away(redeemed(), [window]))) == right
    cart = History(carts=[replace(SET, start_s=2, end_s=3), replace(READ, start_s=2, end_s=3)])
    assert len(list(answered_while_away(cart, [window]))) == (not right)


def test_a_replicas_clock_is_named_for_its_process(tmp_path: Path) -> None:
    """Whether libfaketime is installed or not."""
    clocks = Clocks(Path("/lib/faketime.so"), tmp_path)
    first = clocks.environment("order-0")["FAKETIME_TIMESTAMP_FILE"]
    clocks.set("order-0", -STEP_S)
    assert Path(first).read_text() == "-3600\n"
    assert clocks.environment("order-0")["FAKETIME_TIMESTAMP_FILE"] == first
    assert Path(clocks.environment("order-1")["FAKETIME_TIMESTAMP_FILE"]).read_text() == "+0\n"
