"""What each attempt to pay an order claims of the other services, against what they did for it.

An effect that belongs to a saga carries `<saga_id>:<step>` as its request_id. Both directions are
followed: what is claimed and not there, and what is there and claimed by nobody.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.look import Look
from deploy.audit.merging import rows, side_by_side
from deploy.audit.snapshots import Books


class Due(enum.StrEnum):
    """What an attempt to pay leaves behind, by where it and its order's cancellation stand."""

    DONE = "DONE"
    UNDONE = "UNDONE"
    """Done, and taken back by the cancellation of the order."""
    NOTHING = "NOTHING"
    """Nothing that is still in force."""
    OPEN = "OPEN"
    """Under way: anything."""
    BY_HAND = "BY_HAND"
    """A person has closed it, having put things right by means that are not seen here."""


# An order that counts as paid and has no attempt that paid it claims under its own id, under which
# there is nothing.
CLAIMS: Final = """
SELECT s.saga_id::text COLLATE "C" AS saga_id, s.user_id COLLATE "C" AS user_id,
       s.order_id::text AS order_id,
       CASE WHEN s.state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION') THEN 'OPEN'
            WHEN s.state = 'RESOLVED' THEN 'BY_HAND'
            WHEN s.state = 'COMPENSATED' THEN 'NOTHING'
            WHEN c.state = 'COMPLETED' THEN 'UNDONE'
            WHEN c.state = 'RESOLVED' THEN 'BY_HAND'
            WHEN c.state IS NOT NULL THEN 'OPEN'
            ELSE 'DONE' END AS due,
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

_OF_SAGA: Final = r"~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\:"


def _effects(step: str, sql: str) -> str:
    return sql.replace("@saga_id", 'left(e.request_id, 36) COLLATE "C"').replace(
        "@of_saga", f"e.request_id {_OF_SAGA}{step}$'"
    )


DEDUCTIONS: Final = _effects(
    "deduct_balance",
    """
SELECT @saga_id AS saga_id, e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code,
       -e.amount_minor AS amount_minor, r.entry_id IS NULL AS live
  FROM ledger_entries AS e
  LEFT JOIN ledger_entries AS r
    ON r.user_id = e.user_id AND r.refund_of = e.request_id AND r.refund_of IS NOT NULL
 WHERE e.kind = 'DEDUCT' AND @of_saga
 ORDER BY 1, 2
""",
)

REDEMPTIONS: Final = _effects(
    "redeem_coupon",
    """
SELECT @saga_id AS saga_id, e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code,
       e.discount_minor AS amount_minor, e.restore_time IS NULL AS live,
       e.coupon_id::text AS coupon_id, e.order_amount_minor AS subtotal_minor
  FROM redemptions AS e
 WHERE @of_saga
 ORDER BY 1, 2
""",
)

PAYMENTS: Final = _effects(
    "confirm_payment",
    """
SELECT @saga_id AS saga_id, e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code,
       e.amount_minor, e.state <> 'CANCELLED' AS live, e.payment_id::text AS payment_id,
       e.state || CASE WHEN e.state = 'CONFIRMED' AND e.cancel_reason IS NOT NULL
                       THEN ', to be given back' ELSE '' END AS state
  FROM payments AS e
 WHERE e.state <> 'DECLINED' AND @of_saga
 ORDER BY 1, 2
""",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One service's part in paying."""

    service: str
    noun: str
    invariants: Sequence[str]
    sql: str
    amount: Callable[[Any], int]
    """Of a claim, in minor units."""
    needed: Callable[[Any], bool]
    """Of a claim: whether there is anything to do."""
    same: Sequence[str]
    """Columns that a claim and its effect have in common."""
    figure: str
    direct: str
    """How many effects belong to no saga, which the service's own checks are about."""

    def differs(self, claim: Any, effect: Any) -> list[str]:
        """What of the effect is not as the order says."""
        pairs: list[tuple[str, Any, Any]] = [("amount", self.amount(claim), effect.amount_minor)]
        pairs += [(name, getattr(claim, name), getattr(effect, name)) for name in self.same]
        if self.service == "payment" and effect.state not in {"CONFIRMED", "CANCELLED"}:
            pairs.append(("state", "CONFIRMED or CANCELLED", effect.state))
        return [f"{name} {theirs} and not {ours}" for name, ours, theirs in pairs if ours != theirs]


def _direct(table: str, step: str, where: str) -> str:
    return (
        f"SELECT count(*) FROM {table} AS e WHERE {where} AND NOT (e.request_id {_OF_SAGA}{step}$')"  # noqa: S608 - constants
    )


PARTS: Final = (
    Part(
        "balance",
        "deduction",
        ("I3",),
        DEDUCTIONS,
        amount=lambda claim: claim.paid_by_balance_minor,
        needed=lambda claim: claim.paid_by_balance_minor > 0,
        same=("order_id", "currency_code"),
        figure="orders paid {sums} by balance ({direct:,} direct deductions)",
        direct=_direct("ledger_entries", "deduct_balance", "e.kind = 'DEDUCT'"),
    ),
    Part(
        "coupon",
        "redemption",
        ("I5",),
        REDEMPTIONS,
        amount=lambda claim: claim.discount_minor,
        needed=lambda claim: claim.coupon_id is not None,
        same=("order_id", "currency_code", "coupon_id", "subtotal_minor"),
        figure="orders saved {sums} ({direct:,} direct redemptions)",
        direct=_direct("redemptions", "redeem_coupon", "true"),
    ),
    Part(
        "payment",
        "payment",
        ("I3", "I7"),
        PAYMENTS,
        amount=lambda claim: claim.paid_by_gateway_minor,
        needed=lambda claim: claim.paid_by_gateway_minor > 0,
        same=("order_id", "currency_code", "payment_id"),
        figure="orders paid {sums} through the gateway ({direct:,} direct payments)",
        direct=_direct("payments", "confirm_payment", "e.state NOT IN ('DECLINED', 'CANCELLED')"),
    ),
)


async def compare(books: Books, look: Look, part: Part) -> None:
    """Hold every claim against its effect, and every effect against its claim."""
    paid: Counter[str] = Counter()
    claims = rows(books["order"], CLAIMS, 2)
    effects = rows(books[part.service], part.sql, 2)
    async for (saga_id, user_id), claim, effect in side_by_side(claims, effects):
        if claim is not None and claim.due == Due.DONE and part.needed(claim):
            paid[claim.currency_code] += part.amount(claim)
        what = judge(part, claim, effect)
        if what is None:
            continue
        of = f"order {claim.order_id}" if claim else f"saga {saga_id} of {user_id}"
        told = f"{of}: {what}"
        if claim is not None and claim.due in {Due.OPEN, Due.BY_HAND}:
            look.explained(part.noun, saga_id, told)
        else:
            look.differ(part.invariants, part.noun, f"{saga_id} {user_id}", told)
    direct = await books[part.service].scalar(sa.text(part.direct))
    sums = " + ".join(f"{currency} {paid[currency]:,}" for currency in sorted(paid)) or "nothing"
    look.figure(part.invariants[0], part.figure.format(sums=sums, direct=direct))


def judge(part: Part, claim: Any, effect: Any) -> str | None:
    """What is wrong, or under way; None if the two agree."""
    if claim is None:
        return f"{part.noun} of {_amount(effect)}, and no such saga" if effect.live else None
    live = effect is not None and effect.live
    due = Due(claim.due)
    if due in {Due.OPEN, Due.BY_HAND}:
        how = "is under way" if due is Due.OPEN else "was closed by a person"
        return f"{how}, {part.noun} of {_amount(effect)}" if live else None
    if due is Due.NOTHING or not part.needed(claim):
        return f"{part.noun} of {_amount(effect)}, and nothing was paid so" if live else None
    wanted = f"{claim.currency_code} {part.amount(claim):,}"
    if effect is None:
        return f"paid {wanted} so, and there is no {part.noun}"
    if due is Due.DONE and not live:
        return f"paid {wanted} so, and the {part.noun} is undone"
    if due is Due.UNDONE and live:
        return f"cancelled, and the {part.noun} of {_amount(effect)} is not undone"
    differing = part.differs(claim, effect)
    return f"{part.noun} with {', '.join(differing)}" if differing else None


def _amount(effect: Any) -> str:
    return f"{effect.currency_code} {effect.amount_minor:,}"
