"""Campaigns: created in their lane, read, and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.db.engines import Database, reading
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import Refusal, RequestIdReused
from common.ids import is_id, new_id
from common.locking.locks import NoLocks
from common.paging import Page
from coupon_service.model.campaigns import Campaign, CreateCampaign, campaign_not_found
from coupon_service.store import campaigns as store
from coupon_service.tables import CAMPAIGN_REQUEST_ONCE, answers
from coupon_service.use_cases.pages import cut, place_before

_BODY: Final = TypeAdapter(Campaign)


@dataclass(frozen=True, slots=True)
class Created:
    """A campaign as it was created."""

    campaign: Campaign
    replayed: bool


class Campaigns:
    """All campaigns, seen from one replica."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answers = IdempotencyStore(answers)
        self.lane: Lane[CreateCampaign] = Lane(
            "create_campaign", database, self._decide, NoLocks(), translate=_translate
        )

    async def create(self, command: CreateCampaign) -> Created:
        """Create the campaign, or replay that it was.

        Raises RequestIdReused, DatabaseUnavailable or Overloaded.
        """
        created: Created = await self.lane.submit(command)
        return created

    async def get(self, campaign_id: str) -> Campaign:
        """The campaign as last committed. Raises CampaignNotFound or DatabaseUnavailable."""
        if not is_id(campaign_id):
            raise campaign_not_found(campaign_id)
        async with reading(self._database) as connection:
            campaign = await store.read_one(connection, campaign_id)
        if campaign is None:
            raise campaign_not_found(campaign_id)
        return campaign

    async def list_campaigns(self, page: Page) -> tuple[list[Campaign], str]:
        """A page of all campaigns, newest first, and the next page's token ('' at the end)."""
        before = place_before(page)
        async with reading(self._database) as connection:
            found = await store.read_page(connection, before=before, size=page.size + 1)
        return cut(page, found, lambda campaign: (campaign.create_time, campaign.campaign_id))

    async def _decide(
        self,
        connection: AsyncConnection,
        commands: Sequence[CreateCampaign],
        *,
        wait_for_locks: bool,  # noqa: ARG002 - nobody holds a row that does not exist yet
    ) -> list[Any]:
        """One batch: no rows to lock, so answers, then new campaigns, then their answers."""
        book = await self._answers.open(connection, [command.key for command in commands])
        now = await store.read_clock(connection)
        added: list[tuple[Campaign, str]] = []
        outcomes: list[Any] = []
        for command in commands:
            try:
                replayed = _replay(book, command)
            except Refusal as refusal:
                outcomes.append(refusal)
                continue
            if replayed is None:
                campaign = Campaign.create(command, new_id(), now)
                added.append((campaign, command.request_id))
                book.answer(command, _BODY.dump_json(campaign).decode())
                outcomes.append(Created(campaign, replayed=False))
            else:
                outcomes.append(replayed)
        await store.add(connection, added)
        await book.save(connection)
        return outcomes


def _replay(book: IdempotencyRecords, command: CreateCampaign) -> Created | None:
    answer = book.get(command.key)
    if answer is None:
        return None
    return Created(_BODY.validate_json(answer.body_for(command)), replayed=True)


def _translate(constraint: str, command: CreateCampaign) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint == CAMPAIGN_REQUEST_ONCE:
        # The answer is gone after its 30 days; that it happened is known for good.
        return RequestIdReused(request_id=command.request_id)
    return None
