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

from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.claims import Expected, claims
from deploy.audit.merge_join import merge_join, stream
from deploy.audit.snapshots import Books


class Use(enum.StrEnum):
    """What an amount that was taken is for."""

    PAID = "paid by orders"
    UNDER_WAY = "under way"
    GIVING_BACK = "being given back"
    STANDING = "standing"
    DIRECT = "direct"
    """Taken by a call without an order; the service's own checks cover it."""
    OUTSIDE = "refunded outside Tally"
    """Of what orders paid, negative."""


Uses = Counter[tuple[Use, str]]
"""Amounts in minor units, by use and currency."""


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
    (a cancellation is recorded), ``state``."""
    claimed_amount: str
    """The order's column with the amount that is claimed, in minor units."""
    same: Sequence[str]
    """Columns that are equal in a claim and its effect."""
    paid: str
    """What orders did with the sum, for the figure."""
    joins: str = ""

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
            f' e.user_id COLLATE "C" AS user_id, e.order_id, e.currency_code, {self.columns}'
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

    def amount(self, claim: sa.Row[Any]) -> int:
        """The amount that is claimed, in minor units."""
        return int(getattr(claim, self.claimed_amount))

    def is_needed(self, claim: sa.Row[Any]) -> bool:
        """Whether the claim is about this service at all."""
        if self.service == "coupon":
            return claim.coupon_id is not None
        return self.amount(claim) > 0

    def differing(self, claim: sa.Row[Any], effect: sa.Row[Any]) -> str:
        """What of the effect is not as the order claims; '' if nothing."""
        pairs: list[tuple[str, object, object]] = [
            ("amount", self.amount(claim), effect.amount_minor)
        ]
        pairs += [(name, getattr(claim, name), getattr(effect, name)) for name in self.same]
        if self.service == "payment" and effect.state not in {"CONFIRMED", "CANCELLED"}:
            pairs.append(("state", "CONFIRMED or CANCELLED", effect.state))
        return ", ".join(
            f"{name} {actual} and not {claimed}"
            for name, claimed, actual in pairs
            if claimed != actual
        )


_TAKEN: Final = "0 AS outside_minor, false AS cancelled, '' AS state"
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
            " e.state || CASE WHEN e.state = 'CONFIRMED' AND e.cancel_reason IS NOT NULL"
            " THEN ', to be refunded' ELSE '' END AS state"
        ),
        claimed_amount="paid_by_gateway_minor",
        same=("order_id", "currency_code", "payment_id"),
        paid="paid through the gateway",
    ),
)


async def compare(
    books: Books, found: AuditPass, participant: Participant, *, overdue_s: float
) -> Uses:
    """Compare every claim with its effect, and every effect with its claim.

    Returns what the amounts that the service took, and did not give back, are for.
    """
    uses: Uses = Counter()
    made = stream(books["order"], participant.claims, 2, overdue_s=overdue_s)
    effects = stream(books[participant.service], participant.effects, 2)
    async for (saga_id, user_id), claim, effect in merge_join(made, effects):
        _count(uses, participant, claim, effect)
        subject = f"order {claim.order_id}" if claim else f"saga {saga_id} of {user_id}"
        difference = difference_of(participant, claim, effect)
        if difference is not None:
            row = f"{saga_id} {user_id}"
            text = f"{subject}: {difference}"
            found.add_difference(participant.invariants, participant.noun, row, text)
        elif claim is not None and effect is not None and effect.live:
            _add_note(found, participant, claim, effect)
    direct = 0
    for group in await books[participant.service].execute(sa.text(participant.direct)):
        direct += group.effects
        use = Use.GIVING_BACK if group.cancelled else Use.DIRECT
        uses[use, group.currency_code] += int(group.left_minor)
    found.add_figure(participant.invariants[0], _figure(participant, uses, direct))
    return uses


def _figure(participant: Participant, uses: Uses, direct: int) -> str:
    parts = [f"orders {participant.paid} {_sums(uses, Use.PAID)}"]
    parts += [
        f"{_sums(uses, use)} {use}"
        for use in (Use.UNDER_WAY, Use.GIVING_BACK, Use.STANDING)
        if any(amount for (each, _), amount in uses.items() if each is use)
    ]
    if direct:
        parts.append(f"{_sums(uses, Use.DIRECT)} by {direct:,} direct {participant.noun}s")
    return ", ".join(parts)


def _sums(uses: Uses, use: Use) -> str:
    amounts = {currency: amount for (each, currency), amount in uses.items() if each is use}
    return " + ".join(f"{currency} {amounts[currency]:,}" for currency in sorted(amounts)) or "0"


def _count(
    uses: Uses, participant: Participant, claim: sa.Row[Any] | None, effect: sa.Row[Any] | None
) -> None:
    """Count what was taken under its use. For what orders paid, their own amounts are counted."""
    if claim is None:
        return
    match claim.expected:
        case Expected.DONE:
            if participant.is_needed(claim):
                uses[Use.PAID, claim.currency_code] += participant.amount(claim)
            if effect is not None and effect.outside_minor:
                uses[Use.OUTSIDE, effect.currency_code] -= int(effect.outside_minor)
            return
        case Expected.OPEN:
            given_back = claim.giving_back or (effect is not None and effect.cancelled)
            use = Use.GIVING_BACK if given_back else Use.UNDER_WAY
        case Expected.STANDING:
            use = Use.STANDING
        case _:
            return
    if effect is not None and effect.left_minor:
        uses[use, effect.currency_code] += int(effect.left_minor)


def _add_note(
    found: AuditPass, participant: Participant, claim: sa.Row[Any], effect: sa.Row[Any]
) -> None:
    text = f"order {claim.order_id}: {participant.noun} of {_money(effect)}"
    if claim.expected == Expected.STANDING:
        why = claim.standing_reason or "no reason is recorded"
        found.add_note(Note.STANDING, f"{text}, left by saga {claim.closed_by}: {why}")
    elif claim.expected == Expected.OPEN:
        given_back = claim.giving_back or effect.cancelled
        note = Note.GIVING_BACK if given_back else Note.UNDER_WAY
        found.add_note(note, f"{text}, by saga {claim.closed_by}")


def _money(effect: sa.Row[Any]) -> str:
    return f"{effect.currency_code} {effect.amount_minor:,}"


def difference_of(
    participant: Participant, claim: sa.Row[Any] | None, effect: sa.Row[Any] | None
) -> str | None:
    """How a claim and an effect differ; None if they agree, or if work that moves explains it."""
    noun = participant.noun
    live = _money(effect) if effect is not None and effect.live else ""
    """The amount of an effect in force."""
    if claim is None:
        return f"{noun} of {live}, and no such saga" if live else None
    match claim.expected:
        case Expected.OPEN:
            if claim.fenced and effect is not None and effect.live and not effect.cancelled:
                return f"{noun} of {live} is to be given back, and has no cancellation"
            return None
        case Expected.STUCK:
            return f"{noun} of {live}, and saga {claim.closed_by} does not move" if live else None
        case Expected.UNACCOUNTED if live:
            return (
                f"{noun} of {live} is unaccounted: an earlier release closed saga"
                f" {claim.closed_by} and left it in force; call ResolveSaga for that saga, which"
                " undoes it, or records that it stands"
            )
        case Expected.STANDING:
            return _standing(participant, claim, effect)
        case Expected.NOTHING | Expected.UNACCOUNTED:
            return f"{noun} of {live}, and this attempt paid nothing" if live else None
    if not participant.is_needed(claim):
        return f"{noun} of {live}, and this attempt paid nothing" if live else None
    return _paid(participant, claim, effect)


def _paid(participant: Participant, claim: sa.Row[Any], effect: sa.Row[Any] | None) -> str | None:
    """How the effect of the attempt that paid differs: in force, or undone by a cancellation."""
    noun = participant.noun
    claimed = f"{claim.currency_code} {participant.amount(claim):,}"
    if effect is None:
        return f"{claimed} recorded, and there is no {noun}"
    outside = effect.outside_minor == effect.amount_minor
    if claim.expected == Expected.DONE and not effect.live and not outside:
        return f"{claimed} recorded, and the {noun} is undone"
    if claim.expected == Expected.UNDONE and effect.live:
        return f"cancelled, and the {noun} of {_money(effect)} is not undone"
    differing = participant.differing(claim, effect)
    return f"{noun} with {differing}" if differing else None


def _standing(
    participant: Participant, claim: sa.Row[Any], effect: sa.Row[Any] | None
) -> str | None:
    """Whether exactly the recorded amount stands, less what was given back outside Tally since."""
    stands = f"{claim.currency_code} {claim.standing_minor:,} of the {participant.noun} stand"
    if effect is None:
        return f"{stands}, and there is none"
    if effect.currency_code != claim.currency_code or effect.order_id != claim.order_id:
        return f"{stands}, and it is in {effect.currency_code} for order {effect.order_id}"
    if not effect.left_minor <= claim.standing_minor <= effect.left_minor + effect.outside_minor:
        return f"{stands}, and {effect.left_minor:,} are in force"
    return None
