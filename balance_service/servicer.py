"""BalanceService over gRPC: proto → command → use case → proto. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any, Final

from balance_service.model import (
    Account,
    AccountId,
    ChargeBalance,
    DeductBalance,
    Entry,
    Kind,
    RefundDeduction,
)
from balance_service.use_cases import Accounts
from common.paging import Page
from common.rpc.convert import money_from, time_to
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1 import balance_pb2_grpc
from tally.type.v1.money_pb2 import Money

_KINDS: Final = {
    Kind.CHARGE: pb.LedgerEntry.KIND_CHARGE,
    Kind.DEDUCT: pb.LedgerEntry.KIND_DEDUCT,
    Kind.REFUND: pb.LedgerEntry.KIND_REFUND,
}


class BalanceServicer(balance_pb2_grpc.BalanceServiceServicer):
    """Errors are raised as refusals; the handler around every method converts them to a status."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def ChargeBalance(
        self, request: pb.ChargeBalanceRequest, context: Any
    ) -> pb.ChargeBalanceResponse:
        posted = await self._accounts.write(
            ChargeBalance(request.user_id, money_from(request.amount), request.request_id)
        )
        assert posted.value is not None
        return pb.ChargeBalanceResponse(
            balance=_balance(posted.value),
            entry=_entry(posted.value),
            replayed=posted.replayed,
        )

    async def DeductBalance(
        self, request: pb.DeductBalanceRequest, context: Any
    ) -> pb.DeductBalanceResponse:
        posted = await self._accounts.write(
            DeductBalance(
                request.user_id,
                money_from(request.amount),
                request.request_id,
                request.order_id or None,
            )
        )
        assert posted.value is not None
        return pb.DeductBalanceResponse(
            balance=_balance(posted.value),
            entry=_entry(posted.value),
            replayed=posted.replayed,
        )

    async def RefundDeduction(
        self, request: pb.RefundDeductionRequest, context: Any
    ) -> pb.RefundDeductionResponse:
        posted = await self._accounts.write(
            RefundDeduction(request.user_id, request.deduct_request_id, request.request_id)
        )
        if posted.value is None:
            return pb.RefundDeductionResponse(replayed=posted.replayed)
        return pb.RefundDeductionResponse(
            balance=_balance(posted.value),
            entry=_entry(posted.value),
            replayed=posted.replayed,
        )

    async def GetBalance(
        self, request: pb.GetBalanceRequest, context: Any
    ) -> pb.GetBalanceResponse:
        account = await self._accounts.get_account(
            AccountId(request.user_id, request.currency_code)
        )
        return pb.GetBalanceResponse(balance=_account(account))

    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Any
    ) -> pb.ListLedgerEntriesResponse:
        account_id = AccountId(request.user_id, request.currency_code)
        page = Page.of(request.page_size, request.page_token, filters=account_id, key=[int])
        entries, next_page_token = await self._accounts.list_entries(account_id, page)
        return pb.ListLedgerEntriesResponse(
            entries=[_entry(entry) for entry in entries], next_page_token=next_page_token
        )


def _balance(entry: Entry) -> pb.Balance:
    """The balance as this entry left it: its sequence is the version, its time the update's."""
    return pb.Balance(
        user_id=entry.account_id.user_id,
        available=Money(
            currency_code=entry.account_id.currency_code, amount_minor=entry.balance_after_minor
        ),
        version=entry.sequence,
        update_time=time_to(entry.create_time),
    )


def _account(account: Account) -> pb.Balance:
    return pb.Balance(
        user_id=account.id.user_id,
        available=Money(
            currency_code=account.id.currency_code, amount_minor=account.available_minor
        ),
        version=account.version,
        update_time=time_to(account.update_time),
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
