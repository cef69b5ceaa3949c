"""Creates campaigns in one lane, and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.decider import Decider
from common.batching.lane import Lane
from common.batching.outcomes import VersionConflict
from common.db.engines import Database, read_by_id, reading
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import read_clock
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.locking.locks import Locks
from common.paging import Page, TimePosition
from common.request_key import RequestKey, Result
from coupon_service.errors import CampaignNotFound
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Campaign, CreateCampaign
from coupon_service.store import campaign as store
from coupon_service.tables import CAMPAIGN_REQUEST_ONCE

Created = Result[Campaign]

_BODY: Final = TypeAdapter(Campaign)


class Campaigns:
    """All campaigns, as one replica creates and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self.lane: Lane[CreateCampaign, Created] = Lane(
            "create_campaign",
            database,
            _Decider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate,
        )

    async def create(self, command: CreateCampaign) -> Created:
        """Create the campaign, or replay it.

        Raises RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        return await self.lane.submit(command)

    async def get_campaign(self, campaign_id: str) -> Campaign:
        """The campaign as last committed. Raises CampaignNotFound or DatabaseUnavailable."""
        campaign = await read_by_id(self._database, campaign_id, store.read_campaign)
        if campaign is None:
            raise CampaignNotFound(campaign_id=campaign_id)
        return campaign

    async def list_campaigns(self, page: Page) -> tuple[list[Campaign], str]:
        """A page of all campaigns, newest first, and the next page's token ('' at the end)."""
        async with reading(self._database) as connection:
            found = await store.read_campaigns(connection, page)
        return page.cut(
            found, lambda campaign: TimePosition(campaign.create_time, campaign.campaign_id).key
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
        connection: AsyncConnection,
        commands: Sequence[CreateCampaign],
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
        self, connection: AsyncConnection, batch: _Batch, commands: Sequence[CreateCampaign]
    ) -> dict[int, VersionConflict]:
        await store.add_campaigns(connection, batch.created)
        return {}
