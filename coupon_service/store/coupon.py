"""SQL for coupons and redemptions: issue, redeem and restore coupons, read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa

from common.db.idempotency import Record
from common.db.keyset import newest_first, rows_of
from common.db.row_locks import CLOCK, locked
from common.db.rows import from_row, one_per_key
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, insert_from, looked_up, same, unnest
from common.db.writes import Write
from common.identity.origin import stored_origin
from common.paging import Page
from coupon_service.model.campaign import Campaign, Terms
from coupon_service.model.coupon import Claim, Coupon, IssueCoupon, Redemption, RedemptionId
from coupon_service.model.ticket import QueueCoupon
from coupon_service.store.campaign import COLUMNS, to_campaign
from coupon_service.tables import answers, campaigns, coupons, redemptions

_now: Final = CLOCK.label("now")

# -- issuance ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IssueSnapshot:
    """What was committed about an IssueCoupon or a QueueCoupon at one moment."""

    campaign: Campaign | None
    coupon: Coupon | None
    """The user's coupon of the campaign."""
    record: Record | None
    """The idempotency record of the command."""


# The method is a column too: with a constant, the planner would read the records of all calls to
# this method once, as long as there are few, and keep that plan when there are millions.
_asked = unnest(
    "asked",
    *coupons.c[Claim._fields],
    answers.c.method,
    asked_request_id=sa.Text,
    position=sa.BigInteger,
)
# Campaign and coupon have the ids that were asked for, if they exist. Selected only once, these
# columns let both be read from one row.
_known: list[sa.ColumnElement[Any]] = [
    *_asked.c[Claim._fields],
    *(column for column in COLUMNS if column.key not in {"campaign_id", "request_id"}),
    *(column for column in coupons.c if column.key not in Claim._fields),
    *answers.c["state", "digest", "body"],
    _now,
]
_SNAPSHOTS: Final = (
    sa.select(*_known)
    .select_from(_asked)
    .outerjoin(campaigns, same(campaigns, _asked, ["campaign_id"]))
    .outerjoin(coupons, same(coupons, _asked, Claim._fields))
    .outerjoin(
        answers,
        sa.and_(
            looked_up(answers.c.method, _asked.c.method),
            looked_up(answers.c.scope, _asked.c.user_id),
            looked_up(answers.c.request_id, _asked.c.asked_request_id),
        ),
    )
    .order_by(_asked.c.position)
)

_claimed = unnest("claimed", *coupons.c[Claim._fields])
_FIND_ISSUED: Final = sa.select(coupons, _now).join_from(_claimed, coupons, same(coupons, _claimed))

_issued = unnest("issued", *coupons.c)
_ADD_COUPONS: Final = insert_from(coupons, _issued)
# Two transactions that draw from different shares may have a coupon for the same user.
_ADD_SORTED: Final = insert_from(coupons, _issued, Claim._fields)


async def read_snapshots(
    connection: Connection, commands: Sequence[IssueCoupon | QueueCoupon]
) -> list[IssueSnapshot]:
    """One snapshot per command, in their order, all from one statement. Locks nothing."""
    asked = [
        {
            "campaign_id": command.campaign_id,
            "user_id": command.user_id,
            "method": command.key.method,
            "asked_request_id": command.request_id,
            "position": position,
        }
        for position, command in enumerate(commands)
    ]
    rows = await connection.execute(_SNAPSHOTS, arrays(_asked, asked))
    return [
        IssueSnapshot(
            to_campaign(row) if row.name is not None else None,
            to_coupon(row) if row.coupon_id is not None else None,
            Record(row.state, row.digest, row.body) if row.digest is not None else None,
        )
        for row in rows
    ]


async def find_issued(connection: Connection, claims: Collection[Claim]) -> dict[Claim, Coupon]:
    """The coupons that exist for these claims.

    Of a campaign whose row is not locked, another transaction may be adding one.
    """
    rows = await connection.execute(_FIND_ISSUED, arrays(_claimed, claims))
    return {Claim(row.campaign_id, row.user_id): to_coupon(row) for row in rows}


def adding(issued: Sequence[Coupon]) -> list[Write]:
    """The write of new coupons of campaigns whose rows are locked."""
    return [Write(_ADD_COUPONS, arrays(_issued, issued), len(issued))] if issued else []


def adding_of_shares(issued: Sequence[Coupon]) -> list[Write]:
    """The write of new coupons of locked shares, in ascending order of their claims."""
    return [Write(_ADD_SORTED, arrays(_issued, issued), len(issued))] if issued else []


# -- redemptions ---------------------------------------------------------------------------------


_wanted = unnest("wanted", coupons.c.coupon_id)
_found = sa.select(coupons).join_from(_wanted, coupons, same(coupons, _wanted))


def _with_terms(found: sa.FromClause) -> sa.Select[Any]:
    # The clock is read here, when the rows are locked: the SELECT list of a locking query is
    # computed before it waits.
    terms = campaigns.c[tuple(part.name for part in fields(Terms))]
    return sa.select(*found.c, *terms, _now).join_from(
        found, campaigns, same(campaigns, found, ["campaign_id"])
    )


_READ: Final = _with_terms(_found.subquery("found"))
_LOCK: Final = _with_terms(
    locked(coupons, _found, order_by=[_wanted.c.coupon_id], skip_locked=False)
)

_changed = unnest(
    "changed",
    *coupons.c["coupon_id", "redeem_request_id", "order_id", "redeem_time"],
    loaded_request_id=sa.Text,
)
# An UPDATE locks rows in the order of its plan, so the rows are locked in ascending order first.
# The condition is evaluated again on a row that changed before it was locked.
_unchanged = locked(
    coupons,
    sa.select(_changed)
    .join_from(_changed, coupons, same(coupons, _changed, ["coupon_id"]))
    .where(coupons.c.redeem_request_id.is_not_distinct_from(_changed.c.loaded_request_id)),
    order_by=[_changed.c.coupon_id],
    skip_locked=True,
    name="unchanged",
)
_SAVE: Final = (
    sa.update(coupons)
    .values({name: _unchanged.c[name] for name in ("redeem_request_id", "order_id", "redeem_time")})
    .where(same(coupons, _unchanged, ["coupon_id"]))
    .returning(coupons.c.coupon_id)
)


_named = unnest("named", *redemptions.c[RedemptionId._fields])
_FIND: Final = sa.select(redemptions).join_from(_named, redemptions, same(redemptions, _named))

_added = unnest("added", *redemptions.c)
_ADD: Final = insert_from(redemptions, _added, RedemptionId._fields)

_restored = unnest(
    "restored", *redemptions.c[(*RedemptionId._fields, "restore_request_id", "restore_time")]
)
# Their coupons' rows are locked already, so the order in which they are written does not matter.
_RESTORE: Final = (
    sa.update(redemptions)
    .values({name: _restored.c[name] for name in ("restore_request_id", "restore_time")})
    .where(same(redemptions, _restored, RedemptionId._fields))
    # Not of restore_time: the planner would read the whole index of live redemptions.
    .where(redemptions.c.restore_request_id.is_(None))
)


async def load_coupons(
    connection: Connection, coupon_ids: Collection[str], *, wait_for_locks: bool
) -> tuple[dict[str, Coupon], dict[str, Terms]]:
    """The coupons and the terms of their campaigns, by coupon_id.

    With ``wait_for_locks``, wait for the coupons' row locks and take them.
    """
    if not coupon_ids:
        return {}, {}
    asked = arrays(_wanted, [{"coupon_id": coupon_id} for coupon_id in coupon_ids])
    rows = (await connection.execute(_LOCK if wait_for_locks else _READ, asked)).all()
    return (
        {row.coupon_id: to_coupon(row) for row in rows},
        {row.coupon_id: from_row(Terms, row) for row in rows},
    )


async def save_coupons(
    connection: Connection, changed: Sequence[Coupon], loaded: Mapping[str, Coupon]
) -> set[str]:
    """Write the coupons whose row is still as ``loaded``; returns the ids of these.

    Rows that another transaction has locked are left out too.
    """
    if not changed:
        return set()
    rows = [
        {
            "coupon_id": coupon.coupon_id,
            "redeem_request_id": coupon.redeem_request_id,
            "order_id": coupon.order_id,
            "redeem_time": coupon.redeem_time,
            "loaded_request_id": loaded[coupon.coupon_id].redeem_request_id,
        }
        for coupon in changed
    ]
    return set((await connection.execute(_SAVE, arrays(_changed, rows))).scalars())


async def find_redemptions(
    connection: Connection, named: Collection[RedemptionId]
) -> dict[RedemptionId, Redemption]:
    """Those of the named redemptions that happened, restored or not."""
    if not named:
        return {}
    rows = await connection.execute(_FIND, arrays(_named, named))
    found = [from_row(Redemption, row, origin=stored_origin(row.origin)) for row in rows]
    return {redemption.id: redemption for redemption in found}


def adding_redemptions(added: Sequence[Redemption]) -> list[Write]:
    """The write of new redemptions."""
    return [Write(_ADD, arrays(_added, added), len(added))] if added else []


def restoring_redemptions(restored: Sequence[Redemption]) -> list[Write]:
    """The write that these live redemptions were restored."""
    return [Write(_RESTORE, arrays(_restored, restored), None)] if restored else []


# -- reads ---------------------------------------------------------------------------------------

_of_user = sa.select(coupons, _now).where(coupons.c.user_id == sa.bindparam("user_id"))
_BY_ID: Final = _found.add_columns(_now)
_NEWEST: Final = newest_first(_of_user, coupons.c.issue_time, coupons.c.coupon_id)


async def find_coupons(
    connection: Connection, coupon_ids: Sequence[str]
) -> list[Coupon | Exception | None]:
    """These coupons as last committed, in their order."""
    parameters = arrays_of_tuples(_wanted, [(coupon_id,) for coupon_id in coupon_ids])
    rows = await connection.execute(_BY_ID, parameters)
    return one_per_key(coupon_ids, {row.coupon_id: row for row in rows}, to_coupon)


async def read_coupons(connection: Connection, user_id: str, page: Page) -> list[Coupon]:
    """The page's coupons of the user, newest first, and one more if there is one."""
    asked = {"user_id": user_id} | rows_of(page)
    return [to_coupon(row) for row in await connection.execute(_NEWEST, asked)]


def to_coupon(row: Row) -> Coupon:
    """The coupon in a row that has its columns and the clock."""
    return from_row(Coupon, row, as_of=row.now)
