"""BalanceService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeVar

from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from balance_service.errors import (
    AccountNotFound,
    BalanceLimitExceeded,
    DeductionCancelled,
    InsufficientFunds,
    LedgerEntryNotFound,
)
from balance_service.model import (
    AccountAt,
    AccountId,
    ChargeBalance,
    Command,
    DeductBalance,
    Entry,
    Kind,
    RefundDeduction,
)
from balance_service.use_cases import Accounts, Posted
from common.errors import InvalidField
from common.identity.origin import origin_of_call
from common.paging import Page
from common.rpc.bulk import bulk, decide_items
from common.rpc.convert import fill_money, fill_time, money_from, time_from
from common.rpc.reasons import refuses
from common.rpc.validation import check
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1 import balance_pb2_grpc

Response = TypeVar(
    "Response",
    pb.ChargeBalanceResponse,
    pb.DeductBalanceResponse,
    pb.RefundDeductionResponse,
    pb.BatchWriteResult.Posted,
)

_BATCH_WRITE: Final = "/tally.balance.v1.BalanceService/BatchWrite"
_KINDS: Final = {kind: pb.LedgerEntry.Kind.Value(f"KIND_{kind}") for kind in Kind}


class BalanceServicer(balance_pb2_grpc.BalanceServiceServicer):
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    @refuses(BalanceLimitExceeded)
    async def ChargeBalance(
        self, request: pb.ChargeBalanceRequest, context: Any
    ) -> pb.ChargeBalanceResponse:
        posted = await self._accounts.write(_charge_from(request))
        return _response(pb.ChargeBalanceResponse, posted)

    @refuses(AccountNotFound, InsufficientFunds, DeductionCancelled)
    async def DeductBalance(
        self, request: pb.DeductBalanceRequest, context: Any
    ) -> pb.DeductBalanceResponse:
        posted = await self._accounts.write(_deduct_from(request))
        return _response(pb.DeductBalanceResponse, posted)

    @refuses()
    async def RefundDeduction(
        self, request: pb.RefundDeductionRequest, context: Any
    ) -> pb.RefundDeductionResponse:
        posted = await self._accounts.write(_refund_from(request))
        return _response(pb.RefundDeductionResponse, posted)

    @refuses(items=(BalanceLimitExceeded, AccountNotFound, InsufficientFunds, DeductionCancelled))
    @bulk
    async def BatchWrite(
        self, request: pb.BatchWriteRequest, context: Any
    ) -> pb.BatchWriteResponse:
        response = pb.BatchWriteResponse()
        await decide_items(
            _BATCH_WRITE,
            request.items,
            _command_from,
            self._accounts.write_all,
            lambda outcome: _fill_result(response.results.add(), outcome),
        )
        return response

    @refuses(AccountNotFound)
    async def GetBalance(
        self, request: pb.GetBalanceRequest, context: Any
    ) -> pb.GetBalanceResponse:
        account_id = AccountId(request.user_id, request.currency_code)
        if request.HasField("at_time"):
            asked = AccountAt(*account_id, time_from(request.at_time, "at_time"))
            account = await self._accounts.get_past_account(asked)
        else:
            account = await self._accounts.get_account(account_id)
        response = pb.GetBalanceResponse()
        _fill_balance(
            response.balance,
            account.id,
            account.available_minor,
            account.version,
            account.update_time,
        )
        return response

    @refuses(LedgerEntryNotFound)
    async def GetLedgerEntry(
        self, request: pb.GetLedgerEntryRequest, context: Any
    ) -> pb.GetLedgerEntryResponse:
        entry = await self._accounts.get_entry(request.entry_id, request.user_id)
        return pb.GetLedgerEntryResponse(entry=_entry(entry))

    @refuses(AccountNotFound)
    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Any
    ) -> pb.ListLedgerEntriesResponse:
        account_id = AccountId(request.user_id, request.currency_code)
        page = Page.of(request.page_size, request.page_token, filters=account_id, key=[int])
        found = await self._accounts.list_entries(account_id, page)
        entries, next_page_token = found.messages(_entry)
        return pb.ListLedgerEntriesResponse(entries=entries, next_page_token=next_page_token)


# -- from proto ----------------------------------------------------------------------------------


def _charge_from(request: pb.ChargeBalanceRequest) -> ChargeBalance:
    return ChargeBalance(request.user_id, money_from(request.amount), request.request_id)


def _deduct_from(request: pb.DeductBalanceRequest) -> DeductBalance:
    return DeductBalance(
        request.user_id,
        money_from(request.amount),
        request.request_id,
        request.order_id or None,
        origin_of_call(),
    )


def _refund_from(request: pb.RefundDeductionRequest) -> RefundDeduction:
    return RefundDeduction(request.user_id, request.deduct_request_id, request.request_id)


def _command_from(item: pb.BatchWriteItem) -> Command:
    """The item's command. Raises InvalidFields."""
    match item.WhichOneof("write"):
        case "charge":
            check(item.charge)
            return _charge_from(item.charge)
        case "deduct":
            check(item.deduct)
            return _deduct_from(item.deduct)
        case "refund":
            check(item.refund)
            return _refund_from(item.refund)
        case None:
            raise InvalidField("write", "one of charge, deduct and refund is required")


# -- to proto ------------------------------------------------------------------------------------


# Messages are filled in place: one that is built first and then copied into its parent costs three
# times as much, and each item of a bulk call has nine of them.


def _fill_result(result: pb.BatchWriteResult, outcome: Posted | Status) -> None:
    if isinstance(outcome, Status):
        result.error.CopyFrom(outcome)
    else:
        result.posted.SetInParent()  # although it may have no field
        _fill(result.posted, outcome)


def _response(of_type: type[Response], posted: Posted) -> Response:
    """The response to a write."""
    response = of_type()
    _fill(response, posted)
    return response


def _fill(response: Response, posted: Posted) -> None:
    """Set the fields of a write's outcome: without an entry, only whether it is replayed."""
    response.replayed = posted.replayed
    entry = posted.value
    if entry is None:
        return
    # The entry's sequence is the account's version, and its time that of the update.
    _fill_balance(
        response.balance,
        entry.account_id,
        entry.balance_after_minor,
        entry.sequence,
        entry.create_time,
    )
    _fill_entry(response.entry, entry)


def _fill_balance(
    message: pb.Balance,
    account_id: AccountId,
    available_minor: int,
    version: int,
    update_time: datetime,
) -> None:
    message.user_id = account_id.user_id
    fill_money(message.available, account_id.currency_code, available_minor)
    message.version = version
    fill_time(message.update_time, update_time)


def _entry(entry: Entry) -> pb.LedgerEntry:
    message = pb.LedgerEntry()
    _fill_entry(message, entry)
    return message


def _fill_entry(message: pb.LedgerEntry, entry: Entry) -> None:
    user_id, currency_code = entry.account_id
    message.entry_id = entry.entry_id
    message.user_id = user_id
    message.sequence = entry.sequence
    message.kind = _KINDS[entry.kind]
    fill_money(message.amount, currency_code, entry.amount_minor)
    fill_money(message.balance_after, currency_code, entry.balance_after_minor)
    message.request_id = entry.request_id
    if entry.order_id:
        message.order_id = entry.order_id
    fill_time(message.create_time, entry.create_time)
