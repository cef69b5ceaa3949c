"""Effects under the request_ids of a saga that does not exist: foreign, or a breach."""

from __future__ import annotations

import pytest

from deploy.audit.audit_pass import AuditPass, Note
from tests.integration.audit.books import (
    COUPON_B,
    DIRECT,
    NOW,
    F,
    answer,
    entry_body,
    ledger_entry,
    redemption,
    uid,
)
from tests.integration.audit.conftest import Planted

NOBODY = uid(99)
ENTRY = (NOBODY, 5, -5, 6_995)
REQUEST = ("DEDUCT", f"{NOBODY}:deduct_balance", None, None)
EFFECTS = {
    "balance": (
        ledger_entry("ann", ENTRY, *REQUEST)
        + answer(
            "DeductBalance", "ann", f"{NOBODY}:deduct_balance", entry_body("ann", ENTRY, *REQUEST)
        )
        + "UPDATE accounts SET available_minor = 6995, version = 5 WHERE user_id = 'ann';",
        "ledger_entries",
        f"deduction of KRW 5 of ann, request_id {NOBODY}:deduct_balance",
        "KRW 5 foreign",
    ),
    "coupon": (
        redemption("bob", NOBODY, COUPON_B, order_id=F, order_amount=750, discount=112)
        + f"UPDATE coupons SET order_id = '{F}', redeem_time = '{NOW}',"
        f" redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}';",
        "redemptions",
        f"redemption of KRW 112 of bob, request_id {NOBODY}:redeem_coupon",
        "KRW 112 foreign",
    ),
    "payment": (
        (
            f"UPDATE payments SET request_id = '{NOBODY}:confirm_payment'"
            f" WHERE payment_id = '{DIRECT}';"
            f"UPDATE answers SET request_id = '{NOBODY}:confirm_payment'"
            " WHERE request_id = 'direct-1';"
        ),
        "payments",
        f"payment of KRW 900 of bob, request_id {NOBODY}:confirm_payment",
        # The sums of the gateway's captures add up.
        "1,500 paid by orders + 60 under way + 900 foreign",
    ),
}
"""By service: the effect, its table, and the note and the figure about it."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def found_with(planted: Planted, service: str, origin: str) -> AuditPass:
    effect, table, _, _ = EFFECTS[service]
    stored = f"UPDATE {table} SET origin = {origin} WHERE request_id LIKE '{NOBODY}:%'"
    return await planted.pass_with(service, effect + stored)


@pytest.mark.parametrize("service", EFFECTS)
async def test_what_anyone_may_have_done_is_foreign(planted: Planted, service: str) -> None:
    found = await found_with(planted, service, "'UNVERIFIED'")
    _, _, note, figure = EFFECTS[service]
    assert not found.differences
    assert found.notes[Note.FOREIGN] == [note]
    assert figure in str(found.figures)
    assert found.needs_another, "a saga that began between two snapshots looks the same"


@pytest.mark.parametrize("service", EFFECTS)
@pytest.mark.parametrize("origin", ["'SAGA'", "'DIRECT'", "NULL"])
async def test_what_only_the_order_service_can_have_done_is_a_breach(
    planted: Planted, service: str, origin: str
) -> None:
    """NULL: an earlier release stored it, and what the audit found then it still finds."""
    found = await found_with(planted, service, origin)
    assert any("and no such saga" in each.text for each in found.differences.values())
    assert not found.notes[Note.FOREIGN]


async def test_a_saga_explains_an_effect_of_any_origin(planted: Planted) -> None:
    for service, (_, table, _, _) in EFFECTS.items():
        found = await planted.pass_with(service, f"UPDATE {table} SET origin = 'UNVERIFIED'")
        assert not found.differences
        assert not found.notes[Note.FOREIGN]


async def test_a_foreign_effect_that_was_given_back_is_not_listed(planted: Planted) -> None:
    cancelled = (
        "UPDATE payments SET state = 'CANCELLED', cancel_reason = 'r', refunded_minor = 900,"
        f" cancel_request_time = '{NOW}', origin = 'UNVERIFIED' WHERE payment_id = '{DIRECT}'"
    )
    found = await planted.pass_with("payment", EFFECTS["payment"][0] + cancelled)
    assert not found.notes[Note.FOREIGN]


async def test_a_foreign_effect_is_listed_if_two_passes_have_it() -> None:
    first, second = AuditPass(), AuditPass()
    first.add_note(Note.FOREIGN, "stays")
    first.add_note(Note.FOREIGN, "had its saga a moment later")
    second.add_note(Note.FOREIGN, "stays")
    second.add_note(Note.FOREIGN, "has none yet")
    assert first.needs_another
    assert not second.keep_repeated(first).needs_another
    assert second.notes[Note.FOREIGN] == ["stays"]
