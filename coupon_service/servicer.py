"""CouponService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from common.errors import CurrencyMismatch
from common.identity.origin import origin_of_call
from common.money import Money
from common.paging import Page
from common.rpc.bulk import bulk, decide_items
from common.rpc.convert import (
    fill_money,
    fill_time,
    microseconds_from,
    money_from,
    money_to,
    time_from,
    time_to,
)
from common.rpc.reasons import refuses
from common.rpc.validation import check
from coupon_service.errors import (
    CampaignNotFound,
    CampaignNotOpen,
    CampaignQueued,
    CouponAlreadyIssued,
    CouponExpired,
    CouponNotFound,
    CouponNotUsable,
    CouponSoldOut,
    CouponWithoutEffect,
    OrderAmountTooSmall,
    QueueFull,
    RedemptionCancelled,
    TicketLost,
    TicketNotFound,
)
from coupon_service.model.campaign import Campaign, CampaignState, CreateCampaign, Terms
from coupon_service.model.coupon import (
    Coupon,
    CouponState,
    IssueCoupon,
    RedeemCoupon,
    RestoreCoupon,
)
from coupon_service.model.ticket import QueueCoupon, Ticket, TicketState
from coupon_service.use_cases.campaign import Campaigns
from coupon_service.use_cases.coupon import Redemptions
from coupon_service.use_cases.issuance import Issuance
from coupon_service.use_cases.issue import Issued
from coupon_service.use_cases.ticket import Tickets
from coupon_service.use_cases.ticket_watch import TicketWatches
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1 import coupon_pb2_grpc
from tally.type.v1 import money_pb2

_CAMPAIGN_STATES: Final = {
    state: pb.Campaign.State.Value(f"STATE_{state}") for state in CampaignState
}
_COUPON_STATES: Final = {state: pb.Coupon.State.Value(f"STATE_{state}") for state in CouponState}
_TICKET_STATES: Final = {state: pb.Ticket.State.Value(f"STATE_{state}") for state in TicketState}
_BATCH_ISSUE: Final = "/tally.coupon.v1.CouponService/BatchIssueCoupons"
_US: Final = 1_000_000


class CouponServicer(coupon_pb2_grpc.CouponServiceServicer):
    def __init__(
        self,
        campaigns: Campaigns,
        issuance: Issuance,
        redemptions: Redemptions,
        tickets: Tickets,
        watches: TicketWatches,
    ) -> None:
        self._campaigns = campaigns
        self._issuance = issuance
        self._redemptions = redemptions
        self._tickets = tickets
        self._watches = watches

    @refuses(CurrencyMismatch)
    async def CreateCampaign(
        self, request: pb.CreateCampaignRequest, context: Any
    ) -> pb.CreateCampaignResponse:
        created = await self._campaigns.create(
            CreateCampaign(
                request.name,
                _terms_from(request),
                request.quantity,
                time_from(request.start_time, "start_time"),
                time_from(request.end_time, "end_time"),
                microseconds_from(request.coupon_lifetime, "coupon_lifetime"),
                request.request_id,
                request.shares if request.HasField("shares") else 1,
                queue_only=request.queue_only,
            )
        )
        return pb.CreateCampaignResponse(
            campaign=_campaign(created.value), replayed=created.replayed
        )

    @refuses(CampaignNotFound)
    async def GetCampaign(
        self, request: pb.GetCampaignRequest, context: Any
    ) -> pb.GetCampaignResponse:
        campaign = await self._campaigns.get_campaign(request.campaign_id)
        return pb.GetCampaignResponse(campaign=_campaign(campaign))

    @refuses()
    async def ListCampaigns(
        self, request: pb.ListCampaignsRequest, context: Any
    ) -> pb.ListCampaignsResponse:
        page = Page.of(request.page_size, request.page_token, filters=["campaigns"])
        found = await self._campaigns.list_campaigns(page)
        campaigns, next_page_token = found.messages(_campaign)
        return pb.ListCampaignsResponse(campaigns=campaigns, next_page_token=next_page_token)

    @refuses(CampaignNotFound, CampaignNotOpen, CampaignQueued, CouponAlreadyIssued, CouponSoldOut)
    async def IssueCoupon(
        self, request: pb.IssueCouponRequest, context: Any
    ) -> pb.IssueCouponResponse:
        issued = await self._issuance.issue(
            IssueCoupon(request.campaign_id, request.user_id, request.request_id)
        )
        response = pb.IssueCouponResponse(replayed=issued.replayed)
        _fill_coupon(response.coupon, issued.value)
        return response

    @refuses(
        CampaignNotFound,
        CampaignQueued,
        items=(CampaignNotOpen, CouponAlreadyIssued, CouponSoldOut),
    )
    @bulk
    async def BatchIssueCoupons(
        self, request: pb.BatchIssueCouponsRequest, context: Any
    ) -> pb.BatchIssueCouponsResponse:
        campaign = await self._campaigns.get_unqueued(request.campaign_id)

        def command_from(item: pb.BatchIssueCouponsItem) -> IssueCoupon:
            check(item)
            return IssueCoupon(campaign.campaign_id, item.user_id, item.request_id)

        response = pb.BatchIssueCouponsResponse()
        await decide_items(
            _BATCH_ISSUE,
            request.items,
            command_from,
            self._issuance.issue_all,
            lambda outcome: _fill_result(response.results.add(), outcome),
        )
        return response

    @refuses(
        CampaignNotFound, CampaignNotOpen, CouponAlreadyIssued, CouponSoldOut, QueueFull, TicketLost
    )
    async def QueueCoupon(
        self, request: pb.QueueCouponRequest, context: Any
    ) -> pb.QueueCouponResponse:
        queued = await self._tickets.queue(
            QueueCoupon(request.campaign_id, request.user_id, request.request_id)
        )
        return pb.QueueCouponResponse(ticket=_ticket(queued.value), replayed=queued.replayed)

    @refuses(TicketNotFound, TicketLost)
    async def GetTicket(self, request: pb.GetTicketRequest, context: Any) -> pb.GetTicketResponse:
        ticket = await self._tickets.get(request.ticket_id, request.user_id)
        return pb.GetTicketResponse(ticket=_ticket(ticket))

    @refuses(TicketNotFound, TicketLost)
    async def WatchTicket(
        self, request: pb.WatchTicketRequest, context: Any
    ) -> AsyncGenerator[pb.WatchTicketResponse]:
        async with aclosing(self._watches.follow(request.ticket_id, request.user_id)) as states:
            async for ticket in states:
                yield pb.WatchTicketResponse(ticket=_ticket(ticket))

    @refuses(CouponNotFound)
    async def GetCoupon(self, request: pb.GetCouponRequest, context: Any) -> pb.GetCouponResponse:
        coupon = await self._redemptions.get_coupon(request.coupon_id, request.user_id)
        response = pb.GetCouponResponse()
        _fill_coupon(response.coupon, coupon)
        return response

    @refuses()
    async def ListCoupons(
        self, request: pb.ListCouponsRequest, context: Any
    ) -> pb.ListCouponsResponse:
        filters = ["coupons", request.user_id]
        page = Page.of(request.page_size, request.page_token, filters=filters)
        found = await self._redemptions.list_coupons(request.user_id, page)
        coupons, next_page_token = found.messages(_coupon)
        return pb.ListCouponsResponse(coupons=coupons, next_page_token=next_page_token)

    @refuses(
        CouponNotFound,
        CouponNotUsable,
        CouponExpired,
        OrderAmountTooSmall,
        CouponWithoutEffect,
        RedemptionCancelled,
        CurrencyMismatch,
    )
    async def RedeemCoupon(
        self, request: pb.RedeemCouponRequest, context: Any
    ) -> pb.RedeemCouponResponse:
        changed = await self._redemptions.write(
            RedeemCoupon(
                request.coupon_id,
                request.user_id,
                request.order_id,
                money_from(request.order_amount),
                request.request_id,
                origin_of_call(),
            )
        )
        assert changed.value.coupon is not None
        assert changed.value.discount is not None
        response = pb.RedeemCouponResponse(replayed=changed.replayed)
        _fill_coupon(response.coupon, changed.value.coupon)
        discount = changed.value.discount
        fill_money(response.discount, discount.currency_code, discount.amount_minor)
        return response

    @refuses()
    async def RestoreCoupon(
        self, request: pb.RestoreCouponRequest, context: Any
    ) -> pb.RestoreCouponResponse:
        changed = await self._redemptions.write(
            RestoreCoupon(
                request.coupon_id, request.user_id, request.redeem_request_id, request.request_id
            )
        )
        response = pb.RestoreCouponResponse(replayed=changed.replayed)
        if changed.value.coupon is not None:
            _fill_coupon(response.coupon, changed.value.coupon)
        return response


# -- from proto ----------------------------------------------------------------------------------


def _terms_from(request: pb.CreateCampaignRequest) -> Terms:
    fixed = request.WhichOneof("discount") == "fixed_discount"
    return Terms.of(
        fixed_discount=money_from(request.fixed_discount) if fixed else None,
        percent_discount=None if fixed else request.percent_discount,
        max_discount=money_from(request.max_discount) if request.HasField("max_discount") else None,
        min_order_amount=(
            money_from(request.min_order_amount) if request.HasField("min_order_amount") else None
        ),
    )


# -- to proto ------------------------------------------------------------------------------------


def _fill_result(result: pb.BatchIssueCouponsResult, outcome: Issued | Status) -> None:
    if isinstance(outcome, Status):
        result.error.CopyFrom(outcome)
    else:
        result.replayed = outcome.replayed
        _fill_coupon(result.coupon, outcome.value)


def _campaign(campaign: Campaign) -> pb.Campaign:
    terms = campaign.terms
    message = pb.Campaign(
        campaign_id=campaign.campaign_id,
        name=campaign.name,
        fixed_discount=_money(terms, terms.fixed_discount_minor),
        max_discount=_money(terms, terms.max_discount_minor),
        min_order_amount=_money(terms, terms.min_order_minor),
        quantity=campaign.quantity,
        issued=campaign.issued,
        start_time=time_to(campaign.start_time),
        end_time=time_to(campaign.end_time),
        coupon_lifetime=Duration(
            seconds=campaign.coupon_lifetime_us // _US,
            nanos=campaign.coupon_lifetime_us % _US * 1000,
        ),
        state=_CAMPAIGN_STATES[campaign.state],
        create_time=time_to(campaign.create_time),
        shares=campaign.shares,
        queue_only=campaign.queue_only,
    )
    if terms.percent_discount is not None:
        message.percent_discount = terms.percent_discount
    return message


def _money(terms: Terms, amount_minor: int | None) -> money_pb2.Money | None:
    if amount_minor is None:
        return None
    assert terms.currency_code is not None, "an amount has its currency"
    return money_to(Money(terms.currency_code, amount_minor))


def _coupon(coupon: Coupon) -> pb.Coupon:
    message = pb.Coupon()
    _fill_coupon(message, coupon)
    return message


def _ticket(ticket: Ticket) -> pb.Ticket:
    return pb.Ticket(
        ticket_id=ticket.ticket_id,
        campaign_id=ticket.campaign_id,
        user_id=ticket.user_id,
        position=ticket.position,
        state=_TICKET_STATES[ticket.state],
        coupon=None if ticket.coupon is None else _coupon(ticket.coupon),
        failure_reason=ticket.failure_reason,
        create_time=time_to(ticket.create_time),
        update_time=time_to(ticket.update_time),
    )


def _fill_coupon(message: pb.Coupon, coupon: Coupon) -> None:
    """Set the fields in place: a message that is built first is copied into its response."""
    message.coupon_id = coupon.coupon_id
    message.campaign_id = coupon.campaign_id
    message.user_id = coupon.user_id
    message.issue_number = coupon.issue_number
    message.state = _COUPON_STATES[coupon.state]
    fill_time(message.expire_time, coupon.expire_time)
    fill_time(message.issue_time, coupon.issue_time)
    if coupon.order_id is not None:
        message.order_id = coupon.order_id
    if coupon.redeem_time is not None:
        fill_time(message.redeem_time, coupon.redeem_time)
