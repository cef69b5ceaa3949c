"""Creates campaigns, and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.row_locks import AlsoRead, read_clock
from common.db.statements import Connection
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.locking.locks import Locks
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from coupon_service.errors import CampaignNotFound
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Campaign, CreateCampaign
from coupon_service.model.share import split
from coupon_service.store import campaign as store
from coupon_service.store import share as share_store
from coupon_service.tables import CAMPAIGN_REQUEST_ONCE

Created = Result[Campaign]

_BODY: Final = TypeAdapter(Campaign)


class Campaigns:
    """All campaigns, as one replica creates and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self._found = BatchLoader("campaign", database, store.find_campaigns)
        self.lane: Lane[CreateCampaign, Created] = Lane(
            "create_campaign",
            database,
            _Decider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate,
        )

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._found.close()

    async def create(self, command: CreateCampaign) -> Created:
        """Create the campaign, or replay it.

        Raises InvalidField, RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or
        Overloaded.
        """
        return await self.lane.submit(command)

    async def get_campaign(self, campaign_id: str) -> Campaign:
        """The campaign as last committed. Raises CampaignNotFound or DatabaseUnavailable."""
        campaign = await load_by_id(self._found, campaign_id)
        if campaign is None:
            raise CampaignNotFound(campaign_id=campaign_id)
        return campaign

    async def get_unqueued(self, campaign_id: str) -> Campaign:
        """As ``get_campaign``. Raises CampaignQueued if it issues coupons only by ticket."""
        campaign = await self.get_campaign(campaign_id)
        campaign.check_not_queued()
        return campaign

    async def list_campaigns(self, page: Page) -> Found[Campaign]:
        """A page of all campaigns, newest first."""
        found = await read(
            self._database, lambda connection: store.read_campaigns(connection, page)
        )
        return Found(
            page,
            found,
            lambda campaign: TimePosition(campaign.create_time, campaign.campaign_id).key,
        )


def _translate(constraint: str, command: CreateCampaign) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == CAMPAIGN_REQUEST_ONCE:
        # The record was deleted after 30 days; the campaign stays.
        return RequestIdReused(request_id=command.request_id)
    return None


@dataclass(frozen=True, slots=True)
class _Batch:
    """The campaigns that one transaction creates, each with its request_id."""

    now: datetime
    created: list[tuple[Campaign, str]] = field(default_factory=list)


class _Decider(Decider[CreateCampaign, Created, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[CreateCampaign],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        # A new row depends on no other row.
        return _Batch(await read_clock(connection))

    def keys(self, command: CreateCampaign) -> Sequence[RequestKey]:
        return (command.key,)

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: CreateCampaign
    ) -> Created:
        replayed = records.replay(command, _BODY)
        if replayed is not None:
            return replayed
        campaign = Campaign.create(command, new_id(), batch.now)
        batch.created.append((campaign, command.request_id))
        return records.answer(command, campaign, _BODY)

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[CreateCampaign]
    ) -> Saved:
        shares = [share for campaign, _ in batch.created for share in split(campaign)]
        return Saved([*store.adding(batch.created), *share_store.adding(shares)])
