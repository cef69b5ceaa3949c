"""What each attempt to pay an order claims of the other services, compared with what they did.

The effect of a saga's step has `<saga_id>:<step>` as its request_id. Both directions are checked:
effects that are claimed and missing, and effects that no saga claims. Where identity is off anyone
may send such a request_id: an effect from then that no saga claims is foreign, and no difference.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Any

import sqlalchemy as sa

from common.identity.origin import Origin
from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.claims import Expected
from deploy.audit.merge_join import merge_join, stream
from deploy.audit.participants import Participant
from deploy.audit.parts import Part, parts
from deploy.audit.snapshots import Books
from deploy.audit.touched import Touched


class Use(enum.StrEnum):
    """What an amount that was taken is for."""

    PAID = "paid by orders"
    UNDER_WAY = "under way"
    GIVING_BACK = "being given back"
    STANDING = "standing"
    DIRECT = "direct"
    """Taken by a call without an order; the service's own checks cover it."""
    FOREIGN = "foreign"
    """Taken by a call that looks like a saga's, and is not."""
    OUTSIDE = "refunded outside Tally"
    """Of what orders paid, negative: their amounts are counted as a whole."""


Uses = Counter[tuple[Use, str]]
"""Amounts in minor units, by use and currency."""


async def compare(
    books: Books,
    found: AuditPass,
    participant: Participant,
    *,
    overdue_s: float,
    touched: Touched | None = None,
) -> Uses:
    """Compare every claim with its effect, and every effect with its claim.

    Returns what the amounts that the service took, and did not give back, are for. ``touched``:
    only those of users who were touched, in either book.
    """
    uses: Uses = Counter()
    direct = 0
    for part in parts(participant.service, touched):
        uses.update(await _compare(books, found, participant, part, overdue_s))
        direct += await _count_direct(books, participant, part, uses)
    found.add_figure(participant.invariants[0], _figure(participant, uses, direct))
    if participant.of_money:
        for (use, currency), amount in uses.items():
            # 0 too: whoever watches the sum of a currency sees that nothing stands.
            found.standing_minor[currency] += amount if use is Use.STANDING else 0
    return uses


async def _compare(
    books: Books,
    found: AuditPass,
    participant: Participant,
    part: Part,
    overdue_s: float,
) -> Uses:
    uses: Uses = Counter()
    service = participant.service
    made = stream(books["order"], part.of("order", participant.claims), 2, overdue_s=overdue_s)
    effects = stream(books[service], part.of(service, participant.effects), 2)
    async for (saga_id, user_id), claim, effect in merge_join(made, effects):
        _count(uses, participant, claim, effect)
        subject = f"order {claim.order_id}" if claim else f"saga {saga_id} of {user_id}"
        difference = difference_of(participant, claim, effect)
        if difference is not None:
            row = f"{saga_id} {user_id}"
            text = f"{subject}: {difference}"
            found.add_difference(participant.invariants, participant.noun, row, text)
        elif effect is not None and claim is not None:
            _add_note(found, participant, claim, effect)
        elif effect is not None and effect.live:
            request_id = f"{saga_id}:{participant.step}"
            text = f"{participant.noun} of {_money(effect)} of {user_id}, request_id {request_id}"
            found.add_note(Note.FOREIGN, text)
    return uses


async def _count_direct(books: Books, participant: Participant, part: Part, uses: Uses) -> int:
    """Count the effects outside any saga under their use; returns how many there are."""
    service, effects = participant.service, 0
    for group in await books[service].execute(part.of(service, participant.direct)):
        effects += group.effects
        use = Use.GIVING_BACK if group.cancelled else Use.DIRECT
        uses[use, group.currency_code] += int(group.left_minor)
    return effects


def _figure(participant: Participant, uses: Uses, direct: int) -> str:
    shown = [f"orders {participant.paid} {_sums(uses, Use.PAID)}"]
    shown += [
        f"{_sums(uses, use)} {use}"
        for use in (Use.UNDER_WAY, Use.GIVING_BACK, Use.STANDING, Use.FOREIGN)
        if any(amount for (each, _), amount in uses.items() if each is use)
    ]
    if direct:
        shown.append(f"{_sums(uses, Use.DIRECT)} by {direct:,} direct {participant.noun}s")
    return ", ".join(shown)


def _sums(uses: Uses, use: Use) -> str:
    amounts = {currency: amount for (each, currency), amount in uses.items() if each is use}
    return " + ".join(f"{currency} {amounts[currency]:,}" for currency in sorted(amounts)) or "0"


def _count(
    uses: Uses, participant: Participant, claim: sa.Row[Any] | None, effect: sa.Row[Any] | None
) -> None:
    """Count what was taken under its use. For what orders paid, their own amounts are counted."""
    if claim is None:
        if effect is not None and effect.left_minor and _may_be_foreign(effect):
            use = Use.GIVING_BACK if effect.cancelled else Use.FOREIGN
            uses[use, effect.currency_code] += int(effect.left_minor)
        return
    match claim.expected:
        case Expected.DONE:
            if participant.is_needed(claim):
                uses[Use.PAID, claim.currency_code] += participant.amount(claim) or 0
            if effect is not None and effect.outside_minor:
                uses[Use.OUTSIDE, effect.currency_code] -= int(effect.outside_minor)
            return
        case Expected.OPEN:
            given_back = claim.giving_back or (effect is not None and effect.cancelled)
            use = Use.GIVING_BACK if given_back else Use.UNDER_WAY
        case Expected.STANDING:
            use = Use.STANDING
        case Expected.NOTHING if effect is not None and effect.cancelled:
            use = Use.GIVING_BACK
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
        since = "" if effect.live else "; given back since"
        case = f"{participant.noun} of saga {claim.saga_id}"
        found.add_standing(case, f"{text}, left by saga {claim.closed_by}: {why}{since}")
    elif claim.expected == Expected.OPEN and effect.live:
        given_back = claim.giving_back or effect.cancelled
        note = Note.GIVING_BACK if given_back else Note.UNDER_WAY
        found.add_note(note, f"{text}, by saga {claim.closed_by}")
        if claim.resolving and effect.refused:
            waits = (
                f"saga {claim.closed_by} of order {claim.order_id} is RESOLVING, and waits for a"
            )
            found.add_note(Note.NEEDS_ATTENTION, f"{waits} {participant.noun} that is not refunded")


def _may_be_foreign(effect: sa.Row[Any]) -> bool:
    """Whether anyone may have made the call. Earlier releases did not record who it was."""
    return bool(effect.origin == Origin.UNVERIFIED)


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
        foreign = effect is not None and _may_be_foreign(effect)
        return f"{noun} of {live}, and no such saga" if live and not foreign else None
    match claim.expected:
        case Expected.OPEN:
            return _open(participant, claim, effect)
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
        case Expected.NOTHING if effect is not None and effect.live and effect.cancelled:
            # A charge that came late. It is given back: the payment's own checks are about that.
            return None
        case Expected.NOTHING | Expected.UNACCOUNTED:
            return f"{noun} of {live}, and this attempt paid nothing" if live else None
    if not participant.is_needed(claim):
        return f"{noun} of {live}, and this attempt paid nothing" if live else None
    return _paid(participant, claim, effect)


def _open(participant: Participant, claim: sa.Row[Any], effect: sa.Row[Any] | None) -> str | None:
    """How the effect of a saga that moves differs from the one that it asks for.

    The saga explains whether the effect is in force, unless its journal says so, and nothing else.
    """
    noun = participant.noun
    needed = participant.is_needed(claim)
    if effect is None:
        missing = claim.taken and needed
        return f"the {noun} is recorded as done, and there is none" if missing else None
    if not needed:
        return f"{noun} of {_money(effect)}, and this attempt asks for none"
    if differing := participant.differing(claim, effect):
        return f"{noun} with {differing}"
    if claim.in_force and not effect.live and not effect.outside_minor:
        return f"the {noun} of {_money(effect)} is undone, and no saga has begun to undo it"
    if claim.fenced and effect.live and not effect.cancelled:
        return f"{noun} of {_money(effect)} is to be given back, and has no cancellation"
    return None


def _paid(participant: Participant, claim: sa.Row[Any], effect: sa.Row[Any] | None) -> str | None:
    """How the effect of the attempt that paid differs: in force, or undone by a cancellation."""
    noun = participant.noun
    claimed = f"{claim.currency_code} {participant.amount(claim) or 0:,}"
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
    """Whether exactly the recorded amount stands, less what was given back outside Tally since.

    What stands may be undone later by a call of its own, which the effect records.
    """
    stands = f"{claim.currency_code} {claim.standing_minor:,} of the {participant.noun} stand"
    if effect is None:
        return f"{stands}, and there is none"
    if effect.currency_code != claim.currency_code or effect.order_id != claim.order_id:
        return f"{stands}, and it is in {effect.currency_code} for order {effect.order_id}"
    if not effect.live and effect.amount_minor == claim.standing_minor:
        return None
    if not effect.left_minor <= claim.standing_minor <= effect.left_minor + effect.outside_minor:
        return f"{stands}, and {effect.left_minor:,} are in force"
    return None
