"""Issues coupons of campaigns with shares: each replica from a share of its own, in one lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.outcomes import RowLocked
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, Refusal
from common.ids import new_id
from common.locking.locks import Locks
from common.request_key import RequestKey
from coupon_service.errors import CampaignNotFound, CouponAlreadyIssued
from coupon_service.locking import STRATEGIES
from coupon_service.model.coupon import Claim, Coupon, IssueCoupon
from coupon_service.model.share import Drawn, IssueFromShare, preferred_share
from coupon_service.store import coupon as coupon_store
from coupon_service.store import share as store
from coupon_service.tables import NUMBER_ONCE, SHARE_WITHIN_QUANTITY, USER_ONCE
from coupon_service.use_cases.issue import ISSUED_BODY, Issued, replay_or_refuse

KNOWN_MAX: Final = 1_000
"""Campaigns of which a replica remembers that they have shares; then it forgets the earliest."""


class Shares:
    """Issues coupons from shares in one replica."""

    def __init__(
        self, database: Database, locks: Locks, idempotency: IdempotencyStore, replica: str
    ) -> None:
        """``replica``: its name, by which it draws from other shares than other replicas."""
        self._replica = replica
        self._own: dict[str, int] = {}
        """The share from which it draws next, by campaign; what other shares hold, it steals."""
        self.lane: Lane[IssueFromShare, Issued] = Lane(
            "issue_from_share",
            database,
            _Decider(idempotency, self._move),
            locks,
            STRATEGIES,
            translate=_translate,
        )

    def knows(self, campaign_id: str) -> bool:
        """Whether it is known that the campaign has shares."""
        return campaign_id in self._own

    def learn(self, campaign_id: str, shares: int) -> None:
        """Remember that the campaign has so many shares."""
        if campaign_id not in self._own:
            self._own[campaign_id] = preferred_share(self._replica, campaign_id, shares)
            if len(self._own) > KNOWN_MAX:
                del self._own[next(iter(self._own))]

    async def issue(self, command: IssueCoupon) -> Issued:
        """Issue a coupon of a known campaign to the user, or replay it: ``Issuance.issue``."""
        return await self.lane.submit(self._from_share(command))

    async def issue_all(self, commands: Sequence[IssueCoupon]) -> list[Issued | Exception]:
        """The outcomes for a known campaign: ``Issuance.issue_all``."""
        return await self.lane.submit_bulk([self._from_share(command) for command in commands])

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()

    def _from_share(self, command: IssueCoupon) -> IssueFromShare:
        share = self._own[command.campaign_id]
        return IssueFromShare(command.campaign_id, command.user_id, command.request_id, share)

    def _move(self, campaign_id: str, share: int) -> None:
        """Draw from this share from now on: the one before was empty, or locked elsewhere."""
        if campaign_id in self._own:
            self._own[campaign_id] = share


def _translate(constraint: str, command: IssueFromShare) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == USER_ONCE:
        return CouponAlreadyIssued(campaign_id=command.campaign_id, user_id=command.user_id)
    if constraint in {SHARE_WITHIN_QUANTITY, NUMBER_ONCE}:
        # Only without the row lock: this share's coupons are gone, or the number; more may be left.
        return ConflictRetriesExhausted(campaign_id=command.campaign_id)
    return None


@dataclass(slots=True)
class _Batch:
    """The campaigns of one transaction with the shares that it has locked, and the coupons."""

    drawn: dict[str, Drawn]
    coupons: dict[Claim, Coupon] = field(default_factory=dict)
    new: list[Coupon] = field(default_factory=list)


class _Decider(Decider[IssueFromShare, Issued, _Batch]):
    def __init__(self, idempotency: IdempotencyStore, moved: Callable[[str, int], None]) -> None:
        """``moved``: is told from which share of a campaign a transaction draws."""
        super().__init__(idempotency)
        self._moved = moved

    async def load(
        self,
        connection: Connection,
        commands: Sequence[IssueFromShare],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        # Commands may name different shares: the latest one has the share that was locked last.
        own = {command.campaign_id: command.share for command in commands}
        places = {id_: store.Place(share, after=-1) for id_, share in own.items()}
        drawn = await store.draw_free(connection, places)
        if wait_for_locks and not any(each.shares for each in drawn.values()):
            # While it waits, this transaction holds no share that a third could wait for.
            locked = [id_ for id_, each in drawn.items() if not each.sold_out]
            drawn |= await store.draw(connection, locked) if locked else {}
        await self._steal(connection, drawn, commands)
        for campaign_id, each in drawn.items():
            if each.shares:
                self._moved(campaign_id, each.shares[-1].share)
        return _Batch(drawn)

    async def _steal(
        self, connection: Connection, drawn: dict[str, Drawn], commands: Sequence[IssueFromShare]
    ) -> None:
        """Lock one share more at a time while a campaign has fewer coupons left than commands."""
        wanted = Counter(command.campaign_id for command in commands)
        short = {id_ for id_, each in drawn.items() if each.shares and each.left < wanted[id_]}
        while short:
            found = await store.draw_free(
                connection, {id_: _place_after(drawn[id_]) for id_ in short}
            )
            for campaign_id, more in found.items():
                drawn[campaign_id].shares += more.shares
            short = {id_ for id_ in short if found[id_].shares and drawn[id_].left < wanted[id_]}

    async def load_after_records(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueFromShare]
    ) -> None:
        # Another share's transaction may be adding a coupon for the same user. Then the insertion
        # waits for it and fails, and the batch runs again and finds that coupon.
        batch.coupons = await coupon_store.find_issued(
            connection, {command.claim for command in commands}
        )

    def keys(self, command: IssueFromShare) -> Sequence[RequestKey]:
        return (command.key,)

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: IssueFromShare
    ) -> Issued | RowLocked:
        replayed = records.replay(command, ISSUED_BODY)
        if replayed is not None:
            return replayed
        drawn = batch.drawn.get(command.campaign_id)
        if drawn is None:
            raise CampaignNotFound(campaign_id=command.campaign_id)
        # Before the campaign is checked: COUPON_ALREADY_ISSUED goes before COUPON_SOLD_OUT.
        existing = batch.coupons.get(command.claim)
        if existing is not None:
            records.replays = True
            return replay_or_refuse(command, existing)
        number = drawn.take_number(command.user_id)
        if number is None:
            return RowLocked(command.campaign_id)
        coupon = Coupon.numbered(drawn.campaign, command, new_id(), number)
        batch.coupons[command.claim] = coupon
        batch.new.append(coupon)
        return records.answer(command, coupon, ISSUED_BODY)

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueFromShare]
    ) -> Saved:
        if not batch.new:
            return Saved()
        changed = [share for each in batch.drawn.values() for share in each.shares]
        return Saved([*store.saving_issued(changed), *coupon_store.adding_of_shares(batch.new)])


def _place_after(drawn: Drawn) -> store.Place:
    """The place behind the share that was locked last, in the round that began with the first."""
    first, last = drawn.shares[0].share, drawn.shares[-1].share
    return store.Place(first, after=(last - first) % drawn.campaign.shares)
