"""What was touched since a time is checked whole; what was not is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from deploy.audit import audit, touched
from deploy.audit.services import SERVICES
from deploy.audit.units import CAMPAIGN, PRODUCT, USER, Units
from tests.integration.audit.books import CAMPAIGN as CAMPAIGN_ID
from tests.integration.audit.books import PAY_D, UNKNOWN, A, ledger_entry, uid
from tests.integration.audit.books import PRODUCT as PRODUCT_ID
from tests.integration.audit.conftest import Planted
from tests.integration.audit.payment_books import gateway_charge
from tests.integration.audit.test_breaches import Breach, breaches

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALWAYS: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATER: Final = datetime.now(UTC) + timedelta(days=1)
"""After all rows of the books, however long after this import the tests make them."""
TOUCH: Final = (LATER + timedelta(minutes=1)).isoformat()


def first_of_each_check() -> Iterator[Breach]:
    """A breach of each check that reads what a time can select."""
    seen = set[tuple[str, str]]()
    for breach in breaches():
        if (breach.where, breach.check) not in seen:
            seen.add((breach.where, breach.check))
            yield breach


SEEN_BY_FULL_AUDITS_ONLY: Final = {
    "gateway: the gateway has charged a key that nobody paid with",
}
"""A charge without a payment, which no user has."""


@pytest.mark.parametrize(
    "breach", [*first_of_each_check()], ids=lambda breach: f"{breach.where}: {breach.name}"
)
async def test_breach_in_what_was_touched_is_found(planted: Planted, breach: Breach) -> None:
    if f"{breach.where}: {breach.name}" in SEEN_BY_FULL_AUDITS_ONLY:
        pytest.skip("a full audit finds it")
    found = await planted.pass_with(breach.where, breach.sql, ALWAYS)
    assert breach.invariants <= {invariant for invariant, _ in found.differences}


async def test_figures_since_the_beginning_are_those_of_the_whole(planted: Planted) -> None:
    full = await planted.pass_with("order", "SELECT 1")
    recent = await planted.pass_with("order", "SELECT 1", ALWAYS)
    assert recent.figures == full.figures
    assert recent.notes == full.notes
    assert not recent.differences


def with_only(units: Units, unit: str, one: str) -> Units:
    """The units, as if this user, product or campaign alone had been touched."""
    ids = {name: f"NULL::{'text' if name == USER else 'uuid'}" for name in units}
    if unit in ids:
        ids[unit] = ids[unit].replace("NULL", f"'{one}'")
    return {
        name: replace(
            each,
            touched=f"SELECT id FROM (VALUES ({ids[name]})) AS v (id)"
            " WHERE id IS NOT NULL AND :since > '2000-01-01'",
        )
        for name, each in units.items()
    }


@pytest.mark.parametrize(
    ("unit", "one"),
    [(USER, "ann"), (USER, "bob"), (USER, "eve"), (PRODUCT, PRODUCT_ID), (CAMPAIGN, CAMPAIGN_ID)],
)
async def test_each_unit_alone_needs_no_row_of_another(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, unit: str, one: str
) -> None:
    services = {
        name: replace(checks, units=with_only(checks.units, unit, one))
        for name, checks in SERVICES.items()
    }
    monkeypatch.setattr(audit, "SERVICES", services)
    for name, checks in services.items():
        monkeypatch.setitem(touched.UNITS, name, checks.units)
    found = await planted.pass_with("order", "SELECT 1", LATER)
    assert not found.differences, found.differences


UNTOUCHED: Final = {
    "balance": "UPDATE accounts SET available_minor = available_minor - 1 WHERE user_id = 'ann'",
    "coupon": f"UPDATE campaigns SET issued = issued - 1 WHERE campaign_id = '{CAMPAIGN_ID}'",
    "order": "UPDATE products SET sold = sold - 1",
    "payment": f"UPDATE payments SET amount_minor = 61 WHERE payment_id = '{UNKNOWN}'",
}


@pytest.mark.parametrize("where", UNTOUCHED)
async def test_breach_in_what_was_not_touched_is_for_a_full_audit(
    planted: Planted, where: str
) -> None:
    assert (await planted.pass_with(where, UNTOUCHED[where])).differences
    assert not (await planted.pass_with(where, UNTOUCHED[where], LATER)).differences


TOUCHING: Final = {
    "balance": f"UPDATE answers SET create_time = '{TOUCH}' WHERE scope = 'ann'",
    "coupon": f"UPDATE coupons SET issue_time = '{TOUCH}', expire_time = expire_time"
    f" + ('{TOUCH}' - issue_time)",
    "order": f"UPDATE stock_entries SET create_time = '{TOUCH}' WHERE kind = 'RESTOCKED';"
    f"UPDATE products SET update_time = '{TOUCH}'",
    "payment": f"UPDATE payments SET update_time = '{TOUCH}' WHERE payment_id <> '{UNKNOWN}'",
}
"""Changes of times of other rows of the same user, product or campaign."""


@pytest.mark.parametrize("where", UNTOUCHED)
async def test_old_row_of_what_was_touched_is_checked(planted: Planted, where: str) -> None:
    script = f"{UNTOUCHED[where]};{TOUCHING[where]}"
    found = await planted.pass_with(where, script, LATER)
    texts = {one.text for one in found.differences.values()}
    full = await planted.pass_with(where, UNTOUCHED[where])
    assert {one.text for one in full.differences.values()} & texts, texts


async def test_effect_of_an_untouched_saga_is_compared_with_it(planted: Planted) -> None:
    """The participant alone was touched; the claim is old."""
    refund = ("REFUND", "undone", uid(14), f"{PAY_D}:deduct_balance")
    script = ledger_entry("bob", (uid(99), 6, 250, 4_900), *refund)
    script += f"UPDATE ledger_entries SET create_time = '{TOUCH}' WHERE entry_id = '{uid(99)}'"
    found = await planted.pass_with("balance", script, LATER)
    assert any("no saga has begun to undo it" in one.text for one in found.differences.values())


async def test_open_work_is_overdue_whenever_it_was_touched(planted: Planted) -> None:
    stuck = f"UPDATE sagas SET lease_until = '2000-01-01' WHERE saga_id = '{PAY_D}'"
    found = await planted.pass_with("order", stuck, LATER)
    assert [key for _, key in found.differences] == [f"overdue: saga {PAY_D}"]


async def test_charge_without_a_payment_is_said_to_be_unchecked(planted: Planted) -> None:
    found = await planted.pass_with("gateway", gateway_charge("alone", A, 5, 5), ALWAYS)
    assert not found.differences
    assert any("charges at the gateway that no payment has" in text for text in found.left_out)
