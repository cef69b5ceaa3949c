"""What a ticket's id says, and which consumer may decide."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.errors import InvalidField
from common.ids import is_id, new_id
from coupon_service.errors import CampaignQueued
from coupon_service.model.ticket import (
    PARTITIONS,
    QueuedCampaign,
    Ticket,
    is_ticket_id,
    may_be_lost,
    new_ticket_id,
    partition_of,
    queue_of,
    time_of,
)
from coupon_service.store.queue_entries import found_of
from tests.unit.coupon.test_model import a_campaign, a_command

NOW = datetime(2026, 11, 28, 0, 4, 5, 678_901, tzinfo=UTC)
DAY = timedelta(days=1)
LATE = "e677d21f-dc00-7000-8000-000000000000"
"""In the year 10000."""


def test_a_tickets_id_has_its_time_and_its_queue() -> None:
    campaign_id = new_id()
    ids = {new_ticket_id(campaign_id, NOW) for _ in range(1_000)}
    assert len(ids) == 1_000
    for ticket_id in ids:
        assert is_ticket_id(ticket_id)
        assert is_id(ticket_id)
        assert queue_of(ticket_id) == queue_of(campaign_id)
        assert time_of(ticket_id) == NOW.replace(microsecond=678_000)


def test_every_partition_has_queues() -> None:
    found = {partition_of(queue_of(new_id())) for _ in range(1_000)}
    assert found == set(range(PARTITIONS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "018f0000-0000-4000-8000-000000000000",
        "018f0000-0000-7000-8000-000000000000 ",
        LATE,
        "é" * 36,
    ],
)
def test_other_texts_are_no_ids_of_tickets(text: str) -> None:
    assert not is_ticket_id(text)


@pytest.mark.parametrize(
    ("age", "lost"),
    [
        (timedelta(0), True),
        (DAY - timedelta(seconds=1), True),
        (DAY + timedelta(seconds=1), False),
        (timedelta(seconds=-30), True),
        (timedelta(minutes=-2), False),
    ],
)
def test_only_a_young_ticket_may_be_lost(age: timedelta, *, lost: bool) -> None:
    assert may_be_lost(new_ticket_id(new_id(), NOW), NOW + age, DAY) is lost


def test_an_id_may_be_of_the_last_year() -> None:
    last = "e677d21f-dbff-7000-8000-000000000000"
    assert is_ticket_id(last)
    assert time_of(last).year == 9999


def test_a_waiting_ticket_is_as_old_as_its_id() -> None:
    ticket_id = new_ticket_id(new_id(), NOW)
    ticket = Ticket.waiting(ticket_id, new_id(), "ann", 3)
    assert ticket.create_time == ticket.update_time == time_of(ticket_id)
    assert not ticket.final


def test_a_consumer_with_a_lower_fence_is_not_admitted() -> None:
    queued = QueuedCampaign(a_campaign(), issued_by_ticket=0, queue_fence=7)
    admitted = [queued.admit(fence) for fence in (6, 7, 9, 8, 9)]
    assert admitted == [False, True, True, False, True]


def test_a_campaign_with_a_queue_only_refuses_direct_calls() -> None:
    a_campaign().check_not_queued()
    with pytest.raises(CampaignQueued):
        a_campaign(queue_only=True).check_not_queued()


def test_a_campaign_with_shares_has_no_queue() -> None:
    a_campaign().check_queueable()
    with pytest.raises(InvalidField):
        a_campaign(shares=2).check_queueable()
    with pytest.raises(InvalidField):
        a_campaign(shares=2, queue_only=True)


def test_the_content_of_a_request_has_queue_only_if_it_is_set() -> None:
    assert a_command().digest == a_command(queue_only=False).digest
    digests = {a_command(**fields).digest for fields in ({}, {"queue_only": True}, {"shares": 2})}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("final", "readable"),
    [
        ("COUPON_SOLD_OUT 1795827184000000", True),
        ("COUPON_SOLD_OUT 99999999999999999", True),
        ("COUPON_SOLD_OUT 999999999999999999", False),
        ("COUPON_SOLD_OUT \u0661", False),
        ("COUPON_SOLD_OUT -1", False),
        ("COUPON_SOLD_OUT", False),
        ("sold_out 1", False),
    ],
)
def test_a_final_state_that_cannot_be_read_is_none(final: str, *, readable: bool) -> None:
    state = f"final {new_id()} ann {final}"
    assert (found_of(new_ticket_id(new_id(), NOW), state) is not None) is readable
