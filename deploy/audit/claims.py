"""What each attempt to pay an order claims of the other services, read from the order database."""

from __future__ import annotations

import enum
from typing import Final

from deploy.audit.checks import moving

LIVE: Final = "('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')"
"""SQL: the states of a saga that owns its order."""
KNOWN_PLANS: Final = "(0, 1, 2)"
"""SQL: the versions of plans that this release runs."""
BEGUN: Final = "('BEGUN', 'DONE', 'REFUSED', 'UNKNOWN')"
"""SQL: the states of a step that may have had its effect, which is not undone."""
PAID: Final = "(s.state = 'COMPLETED' OR s.state = 'RESOLVED' AND s.failure IS NULL)"
"""SQL: whether the attempt ``s`` paid its order. Earlier releases resolved such attempts too."""

_AMOUNTS: Final = {
    # The discount and the payment are known when their own step is done.
    "discount_minor": "CASE p.state WHEN 'DONE' THEN (s.facts ->> 'discount_minor')::bigint END",
    "paid_by_balance_minor": "by_balance.minor",
    "paid_by_gateway_minor": "due.minor - by_balance.minor",
    "coupon_id": "CASE WHEN o.subtotal_minor > 0 THEN s.asked ->> 'coupon_id' END",
    "payment_id": "CASE p.state WHEN 'DONE' THEN s.facts ->> 'payment_id' END",
}
"""SQL: by the order's column, what an attempt that has not paid asks for; NULL if not known yet. It
is computed as by ``PayInput.parts``: the balance is deducted after the coupon was redeemed."""


class Expected(enum.StrEnum):
    """What an attempt to pay leaves behind, by its state and that of the order's cancellation."""

    DONE = "DONE"
    UNDONE = "UNDONE"
    """Done, and undone by the cancellation of the order."""
    NOTHING = "NOTHING"
    """No effect that is still in force."""
    OPEN = "OPEN"
    """Its saga moves, and has begun the step or the cancellation: the effect that it asks for, in
    force or not."""
    STUCK = "STUCK"
    """Its saga has not ended and does not move, and so explains nothing."""
    STANDING = "STANDING"
    """The effect stays by a person's decision, with this amount."""
    UNACCOUNTED = "UNACCOUNTED"
    """An earlier release closed the saga, and recorded nothing about the effect."""


def _step(saga: str, name: str) -> str:
    """SQL: one step of the saga, for those states in which the steps decide.

    A field that has its default is not stored.
    """
    return (
        f"(SELECT coalesce(step ->> 'state', 'PENDING') AS state,"  # noqa: S608 - constants
        f" coalesce((step ->> 'fenced')::boolean, false) AS fenced,"
        f" coalesce(step ->> 'standing_reason', '') AS standing_reason,"
        f" coalesce((step ->> 'standing_minor')::numeric, 0) AS standing_minor"
        f" FROM jsonb_array_elements({saga}.steps) AS step"
        f" WHERE {saga}.state NOT IN ('COMPLETED', 'COMPENSATED') AND step ->> 'name' = '{name}'"
        f" LIMIT 1)"
    )


def claims(step: str, reversal: str) -> str:
    """SQL: all claims on the effects of ``step``, which ``reversal`` undoes in a cancellation.

    Ordered by saga and user. ``taken``: the step is recorded as done; ``in_force``: and nothing has
    begun to undo it. An order that counts as paid without an attempt that paid it claims
    effects under its own id, where there are none.
    """
    of_order = ", ".join(f"o.{name}" for name in _AMOUNTS)
    of_attempt = ", ".join(
        f"CASE WHEN {PAID} THEN o.{name} ELSE {computed} END AS {name}"
        for name, computed in _AMOUNTS.items()
    )
    return f"""
SELECT s.saga_id::text COLLATE "C" AS saga_id, s.user_id COLLATE "C" AS user_id,
       s.order_id::text AS order_id,
       CASE WHEN p.state = 'STANDING' THEN 'STANDING'
            WHEN s.state = 'COMPENSATED' THEN 'NOTHING'
            WHEN NOT {PAID}
            THEN CASE WHEN p.state IS NULL OR p.state NOT IN {BEGUN} THEN 'NOTHING'
                      WHEN s.state = 'RESOLVED'
                      THEN CASE s.plan_version WHEN 1 THEN 'UNACCOUNTED' ELSE 'NOTHING' END
                      WHEN {moving("s.lease_until")} THEN 'OPEN' ELSE 'STUCK' END
            WHEN c.saga_id IS NULL THEN 'DONE'
            WHEN c.state = 'COMPLETED' OR r.state IN ('DONE', 'COMPENSATED') THEN 'UNDONE'
            WHEN r.state = 'STANDING' THEN 'STANDING'
            WHEN c.state = 'RESOLVED'
            THEN CASE c.plan_version WHEN 1 THEN 'UNACCOUNTED' ELSE 'UNDONE' END
            WHEN {moving("c.lease_until")} THEN 'OPEN' ELSE 'STUCK' END AS expected,
       {PAID} OR p.state = 'DONE' AS taken,
       CASE WHEN {PAID} THEN r.state IN ('PENDING', 'SKIPPED')
            ELSE p.state = 'DONE' AND s.failure IS NULL AND s.resolution_reason = '' END
           AS in_force,
       coalesce(r.fenced, p.fenced, false) AS fenced,
       c.saga_id IS NOT NULL OR s.failure IS NOT NULL AS giving_back,
       coalesce(c.saga_id, s.saga_id)::text AS closed_by,
       coalesce(c.state, s.state) = 'RESOLVING' AS resolving,
       coalesce(r.standing_minor, p.standing_minor) AS standing_minor,
       coalesce(r.standing_reason, p.standing_reason) AS standing_reason,
       o.currency_code, o.subtotal_minor, {of_attempt}
  FROM sagas AS s
 CROSS JOIN heartbeat AS h
  JOIN orders AS o ON o.order_id = s.order_id
 CROSS JOIN LATERAL (
       SELECT o.subtotal_minor - coalesce((s.facts ->> 'discount_minor')::bigint, 0)
              AS minor) AS due
 CROSS JOIN LATERAL (
       SELECT coalesce((s.asked ->> 'balance_minor')::bigint,
                       CASE WHEN s.asked ->> 'payment_key' IS NULL THEN due.minor ELSE 0 END)
              AS minor) AS by_balance
  LEFT JOIN sagas AS c
    ON c.order_id = s.order_id AND c.kind = 'CANCEL_ORDER' AND {PAID}
  LEFT JOIN LATERAL {_step("s", step)} AS p ON true
  LEFT JOIN LATERAL {_step("c", reversal)} AS r ON true
 WHERE s.kind = 'PAY_ORDER'
 UNION ALL
SELECT o.order_id::text, o.user_id, o.order_id::text, 'DONE', true, true, false, false, '',
       false, 0, '', o.currency_code, o.subtotal_minor, {of_order}
  FROM orders AS o
 WHERE o.state IN ('PAID', 'CANCELLING')
   AND NOT EXISTS (SELECT FROM sagas AS s
                    WHERE s.order_id = o.order_id AND s.kind = 'PAY_ORDER' AND {PAID})
 ORDER BY 1, 2
"""  # noqa: S608 - constants
