"""The services that take part in paying an order, and what of theirs a saga's step has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.claims import Expected, claims


@dataclass(frozen=True, slots=True)
class Participant:
    """One service's part in paying an order."""

    service: str
    noun: str
    """What one effect is called."""
    invariants: Sequence[str]
    step: str
    reversal: str
    table: str
    where: str
    """Which rows of the table are effects."""
    columns: str
    """Of an effect, besides those that each has: ``amount_minor``, ``live``, ``left_minor`` (what
    is taken and not given back), ``outside_minor`` (given back, and not by Tally), ``cancelled``
    (a cancellation is recorded), ``refused`` (the gateway refused to give it back), ``state``."""
    claimed_amount: str
    """The order's column with the amount that is claimed, in minor units."""
    same: Sequence[str]
    """Columns that are equal in a claim and its effect."""
    paid: str
    """What orders did with the sum, for the figure."""
    joins: str = ""
    of_money: bool = True
    """Whether its amounts are taken from somebody: a discount is not."""

    @property
    def _of_saga(self) -> str:
        return rf"e.request_id ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}\:{self.step}$'"

    @property
    def claims(self) -> str:
        """SQL: what attempts claim, ordered by saga and user."""
        return claims(self.step, self.reversal)

    @property
    def effects(self) -> str:
        """SQL: the effects of sagas, ordered by saga and user."""
        return (
            'SELECT left(e.request_id, 36) COLLATE "C" AS saga_id,'  # noqa: S608 - constants
            ' e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code, e.origin,'
            f" {self.columns}"
            f" FROM {self.table} AS e {self.joins}"
            f" WHERE {self.where} AND {self._of_saga} ORDER BY 1, 2"
        )

    @property
    def direct(self) -> str:
        """SQL: by currency, the number of live effects outside any saga, and what is left."""
        return (
            "SELECT currency_code, cancelled, count(*) AS effects, sum(left_minor) AS left_minor"  # noqa: S608 - constants
            f" FROM (SELECT e.currency_code, {self.columns} FROM {self.table} AS e {self.joins}"
            f" WHERE {self.where} AND NOT ({self._of_saga})) AS effect WHERE live GROUP BY 1, 2"
        )

    def amount(self, claim: sa.Row[Any]) -> int | None:
        """The amount that is claimed, in minor units; None if it is not known yet."""
        amount: int | None = getattr(claim, self.claimed_amount)
        return amount

    def is_needed(self, claim: sa.Row[Any]) -> bool:
        """Whether the claim is about this service at all."""
        if self.service == "coupon":
            return claim.coupon_id is not None
        return self.amount(claim) != 0

    def differing(self, claim: sa.Row[Any], effect: sa.Row[Any]) -> str:
        """What of the effect is not as it is claimed; '' if nothing.

        What an attempt under way does not know yet is not compared.
        """
        pairs: list[tuple[str, object, object]] = [
            ("amount", self.amount(claim), effect.amount_minor)
        ]
        pairs += [(name, getattr(claim, name), getattr(effect, name)) for name in self.same]
        if claim.expected == Expected.OPEN:
            pairs = [pair for pair in pairs if pair[1] is not None]
        elif self.service == "payment" and effect.state not in {"CONFIRMED", "CANCELLED"}:
            pairs.append(("state", "CONFIRMED or CANCELLED", effect.state))
        return ", ".join(
            f"{name} {actual} and not {claimed}"
            for name, claimed, actual in pairs
            if claimed != actual
        )


_TAKEN: Final = "0 AS outside_minor, false AS cancelled, false AS refused, '' AS state"
PARTICIPANTS: Final = (
    Participant(
        service="balance",
        noun="deduction",
        invariants=("I3",),
        step="deduct_balance",
        reversal="refund_deduction",
        table="ledger_entries",
        where="e.kind = 'DEDUCT'",
        columns="-e.amount_minor AS amount_minor, r.entry_id IS NULL AS live,"
        f" CASE WHEN r.entry_id IS NULL THEN -e.amount_minor ELSE 0 END AS left_minor, {_TAKEN}",
        claimed_amount="paid_by_balance_minor",
        same=("order_id", "currency_code"),
        paid="paid by balance",
        joins=(
            "LEFT JOIN ledger_entries AS r ON r.user_id = e.user_id AND r.refund_of = e.request_id"
            " AND r.refund_of IS NOT NULL"
        ),
    ),
    Participant(
        service="coupon",
        noun="redemption",
        invariants=("I5",),
        step="redeem_coupon",
        reversal="restore_coupon",
        table="redemptions",
        where="true",
        columns=(
            "e.discount_minor AS amount_minor, e.restore_time IS NULL AS live,"
            " CASE WHEN e.restore_time IS NULL THEN e.discount_minor ELSE 0 END AS left_minor,"
            f" e.coupon_id::text AS coupon_id, e.order_amount_minor AS subtotal_minor, {_TAKEN}"
        ),
        claimed_amount="discount_minor",
        same=("order_id", "currency_code", "coupon_id", "subtotal_minor"),
        of_money=False,
        paid="saved by coupons",
    ),
    Participant(
        service="payment",
        noun="payment",
        invariants=("I3", "I7"),
        step="confirm_payment",
        reversal="cancel_payment",
        table="payments",
        where="e.state <> 'DECLINED'",
        # A payment that an earlier release cancelled has no sum of refunds.
        columns=(
            "e.amount_minor, e.state <> 'CANCELLED' AS live, e.payment_id::text AS payment_id,"
            " CASE e.state WHEN 'CONFIRMED' THEN e.amount_minor - e.refunded_minor ELSE 0 END"
            " AS left_minor, e.refunded_outside_minor AS outside_minor,"
            " e.cancel_reason IS NOT NULL AS cancelled,"
            " e.state = 'CONFIRMED' AND e.refund_refusal_code IS NOT NULL AS refused,"
            " e.state || CASE WHEN e.state = 'CONFIRMED' AND e.cancel_reason IS NOT NULL"
            " THEN ', to be refunded' ELSE '' END AS state"
        ),
        claimed_amount="paid_by_gateway_minor",
        same=("order_id", "currency_code", "payment_id"),
        paid="paid through the gateway",
    ),
)
