"""What each attempt to pay an order claims of the other services, compared with what they did.

The effect of a saga's step has `<saga_id>:<step>` as its request_id. Both directions are checked:
effects that are claimed and missing, and effects that no saga claims.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.audit_pass import AuditPass
from deploy.audit.merge_join import merge_join, stream
from deploy.audit.snapshots import Books


class Expected(enum.StrEnum):
    """What an attempt to pay leaves behind, by its state and that of the order's cancellation."""

    DONE = "DONE"
    UNDONE = "UNDONE"
    """Done, and undone by the cancellation of the order."""
    NOTHING = "NOTHING"
    """No effect that is still in force."""
    OPEN = "OPEN"
    """Under way: any effect, or none."""
    RESOLVED = "RESOLVED"
    """An operator closed it, and corrected the effects by means that the audit cannot see."""


# An order that counts as paid without an attempt that paid it claims effects under its own id,
# where there are none.
CLAIMS: Final = """
SELECT s.saga_id::text COLLATE "C" AS saga_id, s.user_id COLLATE "C" AS user_id,
       s.order_id::text AS order_id,
       CASE WHEN s.state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION') THEN 'OPEN'
            WHEN s.state = 'RESOLVED' THEN 'RESOLVED'
            WHEN s.state = 'COMPENSATED' THEN 'NOTHING'
            WHEN c.state = 'COMPLETED' THEN 'UNDONE'
            WHEN c.state = 'RESOLVED' THEN 'RESOLVED'
            WHEN c.state IS NOT NULL THEN 'OPEN'
            ELSE 'DONE' END AS expected,
       o.currency_code, o.subtotal_minor, o.discount_minor, o.paid_by_balance_minor,
       o.paid_by_gateway_minor, o.coupon_id, o.payment_id
  FROM sagas AS s
  JOIN orders AS o ON o.order_id = s.order_id
  LEFT JOIN sagas AS c
    ON c.order_id = s.order_id AND c.kind = 'CANCEL_ORDER' AND s.state = 'COMPLETED'
 WHERE s.kind = 'PAY_ORDER'
 UNION ALL
SELECT o.order_id::text, o.user_id, o.order_id::text, 'DONE',
       o.currency_code, o.subtotal_minor, o.discount_minor, o.paid_by_balance_minor,
       o.paid_by_gateway_minor, o.coupon_id, o.payment_id
  FROM orders AS o
 WHERE o.state IN ('PAID', 'CANCELLING')
   AND NOT EXISTS (SELECT FROM sagas AS s
                    WHERE s.order_id = o.order_id AND s.kind = 'PAY_ORDER'
                      AND s.state IN ('COMPLETED', 'RESOLVED'))
 ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Participant:
    """One service's part in paying an order."""

    service: str
    noun: str
    """What one effect is called."""
    invariants: Sequence[str]
    step: str
    table: str
    where: str
    """Which rows of the table are effects."""
    columns: str
    """Of an effect, besides those that each has: at least ``amount_minor`` and ``live``."""
    claimed_amount: str
    """The order's column with the amount that is claimed, in minor units."""
    same: Sequence[str]
    """Columns that are equal in a claim and its effect."""
    figure: str
    joins: str = ""
    direct_where: str = ""
    """Which rows count as direct, if not all of ``where``."""

    @property
    def _of_saga(self) -> str:
        return rf"e.request_id ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}\:{self.step}$'"

    @property
    def effects(self) -> str:
        """SQL: the effects of sagas, ordered by saga and user."""
        return (
            'SELECT left(e.request_id, 36) COLLATE "C" AS saga_id,'  # noqa: S608 - constants
            f' e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code, {self.columns}'
            f" FROM {self.table} AS e {self.joins}"
            f" WHERE {self.where} AND {self._of_saga} ORDER BY 1, 2"
        )

    @property
    def count_direct(self) -> str:
        """SQL: the number of effects outside any saga, which the service's own checks cover."""
        where = self.direct_where or self.where
        return f"SELECT count(*) FROM {self.table} AS e WHERE {where} AND NOT ({self._of_saga})"  # noqa: S608 - constants

    def amount(self, claim: sa.Row[Any]) -> int:
        """The amount that is claimed, in minor units."""
        return int(getattr(claim, self.claimed_amount))

    def is_needed(self, claim: sa.Row[Any]) -> bool:
        """Whether the claim is about this service at all."""
        if self.service == "coupon":
            return claim.coupon_id is not None
        return self.amount(claim) > 0

    def differing(self, claim: sa.Row[Any], effect: sa.Row[Any]) -> list[str]:
        """What of the effect is not as the order claims."""
        pairs: list[tuple[str, object, object]] = [
            ("amount", self.amount(claim), effect.amount_minor)
        ]
        pairs += [(name, getattr(claim, name), getattr(effect, name)) for name in self.same]
        if self.service == "payment" and effect.state not in {"CONFIRMED", "CANCELLED"}:
            pairs.append(("state", "CONFIRMED or CANCELLED", effect.state))
        return [
            f"{name} {actual} and not {claimed}"
            for name, claimed, actual in pairs
            if claimed != actual
        ]


PARTICIPANTS: Final = (
    Participant(
        service="balance",
        noun="deduction",
        invariants=("I3",),
        step="deduct_balance",
        table="ledger_entries",
        where="e.kind = 'DEDUCT'",
        columns="-e.amount_minor AS amount_minor, r.entry_id IS NULL AS live",
        claimed_amount="paid_by_balance_minor",
        same=("order_id", "currency_code"),
        figure="orders paid {sums} by balance ({direct:,} direct deductions)",
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
        table="redemptions",
        where="true",
        columns=(
            "e.discount_minor AS amount_minor, e.restore_time IS NULL AS live,"
            " e.coupon_id::text AS coupon_id, e.order_amount_minor AS subtotal_minor"
        ),
        claimed_amount="discount_minor",
        same=("order_id", "currency_code", "coupon_id", "subtotal_minor"),
        figure="orders saved {sums} ({direct:,} direct redemptions)",
    ),
    Participant(
        service="payment",
        noun="payment",
        invariants=("I3", "I7"),
        step="confirm_payment",
        table="payments",
        where="e.state <> 'DECLINED'",
        columns=(
            "e.amount_minor, e.state <> 'CANCELLED' AS live, e.payment_id::text AS payment_id,"
            " e.state || CASE WHEN e.state = 'CONFIRMED' AND e.cancel_reason IS NOT NULL"
            " THEN ', to be refunded' ELSE '' END AS state"
        ),
        claimed_amount="paid_by_gateway_minor",
        same=("order_id", "currency_code", "payment_id"),
        figure="orders paid {sums} through the gateway ({direct:,} direct payments)",
        direct_where="e.state NOT IN ('DECLINED', 'CANCELLED')",
    ),
)


async def compare(books: Books, found: AuditPass, participant: Participant) -> None:
    """Compare every claim with its effect, and every effect with its claim."""
    paid: Counter[str] = Counter()
    claims = stream(books["order"], CLAIMS, 2)
    effects = stream(books[participant.service], participant.effects, 2)
    async for (saga_id, user_id), claim, effect in merge_join(claims, effects):
        done = claim is not None and claim.expected == Expected.DONE
        if claim is not None and done and participant.is_needed(claim):
            paid[claim.currency_code] += participant.amount(claim)
        difference = difference_of(participant, claim, effect)
        if difference is None:
            continue
        subject = f"order {claim.order_id}" if claim else f"saga {saga_id} of {user_id}"
        text = f"{subject}: {difference}"
        if claim is not None and claim.expected in {Expected.OPEN, Expected.RESOLVED}:
            found.add_in_flight(participant.noun, saga_id, text)
        else:
            row = f"{saga_id} {user_id}"
            found.add_difference(participant.invariants, participant.noun, row, text)
    direct = await books[participant.service].scalar(sa.text(participant.count_direct))
    sums = " + ".join(f"{currency} {paid[currency]:,}" for currency in sorted(paid)) or "nothing"
    figure = participant.figure.format(sums=sums, direct=direct)
    found.add_figure(participant.invariants[0], figure)


def difference_of(
    participant: Participant, claim: sa.Row[Any] | None, effect: sa.Row[Any] | None
) -> str | None:
    """How a claim and an effect differ, or what is under way; None if they agree."""
    noun = participant.noun
    live = f"{effect.currency_code} {effect.amount_minor:,}" if effect and effect.live else ""
    """The amount of an effect in force."""
    if claim is None:
        return f"{noun} of {live}, and no such saga" if live else None
    if claim.expected in {Expected.OPEN, Expected.RESOLVED}:
        state = "under way" if claim.expected == Expected.OPEN else "closed by an operator"
        return f"{state}, {noun} of {live}" if live else None
    if claim.expected == Expected.NOTHING or not participant.is_needed(claim):
        return f"{noun} of {live}, and this attempt paid nothing" if live else None
    claimed = f"{claim.currency_code} {participant.amount(claim):,}"
    if effect is None:
        return f"{claimed} recorded, and there is no {noun}"
    if claim.expected == Expected.DONE and not live:
        return f"{claimed} recorded, and the {noun} is undone"
    if claim.expected == Expected.UNDONE and live:
        return f"cancelled, and the {noun} of {live} is not undone"
    differing = participant.differing(claim, effect)
    return f"{noun} with {', '.join(differing)}" if differing else None
