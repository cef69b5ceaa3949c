"""BalanceService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeVar

from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

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
from common.paging import Page
from common.rpc.bulk import bulk, decide_items
from common.rpc.convert import money_from, time_from, time_to
from common.rpc.validation import check
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1 import balance_pb2_grpc
from tally.type.v1.money_pb2 import Money

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

    async def ChargeBalance(
        self, request: pb.ChargeBalanceRequest, context: Any
    ) -> pb.ChargeBalanceResponse:
        posted = await self._accounts.write(_charge_from(request))
        return _response(pb.ChargeBalanceResponse, posted)

    async def DeductBalance(
        self, request: pb.DeductBalanceRequest, context: Any
    ) -> pb.DeductBalanceResponse:
        posted = await self._accounts.write(_deduct_from(request))
        return _response(pb.DeductBalanceResponse, posted)

    async def RefundDeduction(
        self, request: pb.RefundDeductionRequest, context: Any
    ) -> pb.RefundDeductionResponse:
        posted = await self._accounts.write(_refund_from(request))
        return _response(pb.RefundDeductionResponse, posted)

    @bulk
    async def BatchWrite(
        self, request: pb.BatchWriteRequest, context: Any
    ) -> pb.BatchWriteResponse:
        results = await decide_items(
            _BATCH_WRITE, request.items, _command_from, self._accounts.write_all, _result
        )
        return pb.BatchWriteResponse(results=results)

    async def GetBalance(
        self, request: pb.GetBalanceRequest, context: Any
    ) -> pb.GetBalanceResponse:
        account_id = AccountId(request.user_id, request.currency_code)
        if request.HasField("at_time"):
            asked = AccountAt(*account_id, time_from(request.at_time, "at_time"))
            account = await self._accounts.get_past_account(asked)
        else:
            account = await self._accounts.get_account(account_id)
        return pb.GetBalanceResponse(
            balance=_balance(
                account.id, account.available_minor, account.version, account.update_time
            )
        )

    async def GetLedgerEntry(
        self, request: pb.GetLedgerEntryRequest, context: Any
    ) -> pb.GetLedgerEntryResponse:
        entry = await self._accounts.get_entry(request.entry_id, request.user_id)
        return pb.GetLedgerEntryResponse(entry=_entry(entry))

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
        request.user_id, money_from(request.amount), request.request_id, request.order_id or None
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


def _result(outcome: Posted | Status) -> pb.BatchWriteResult:
    if isinstance(outcome, Status):
        return pb.BatchWriteResult(error=outcome)
    return pb.BatchWriteResult(posted=_response(pb.BatchWriteResult.Posted, outcome))


def _response(of_type: type[Response], posted: Posted) -> Response:
    """The response to a write; it has its fields if there is an entry."""
    entry = posted.value
    if entry is None:
        return of_type(replayed=posted.replayed)
    # The entry's sequence is the account's version, and its time that of the update.
    balance = _balance(
        entry.account_id, entry.balance_after_minor, entry.sequence, entry.create_time
    )
    return of_type(balance=balance, entry=_entry(entry), replayed=posted.replayed)


def _balance(
    account_id: AccountId, available_minor: int, version: int, update_time: datetime
) -> pb.Balance:
    return pb.Balance(
        user_id=account_id.user_id,
        available=Money(currency_code=account_id.currency_code, amount_minor=available_minor),
        version=version,
        update_time=time_to(update_time),
    )


def _entry(entry: Entry) -> pb.LedgerEntry:
    currency_code = entry.account_id.currency_code
    return pb.LedgerEntry(
        entry_id=entry.entry_id,
        user_id=entry.account_id.user_id,
        sequence=entry.sequence,
        kind=_KINDS[entry.kind],
        amount=Money(currency_code=currency_code, amount_minor=entry.amount_minor),
        balance_after=Money(currency_code=currency_code, amount_minor=entry.balance_after_minor),
        request_id=entry.request_id,
        order_id=entry.order_id or "",
        create_time=time_to(entry.create_time),
    )
