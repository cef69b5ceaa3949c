"""Requests of BalanceService, what its database must say, and its guards removed."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.message import Message

from balance_service import tables
from balance_service.store import account as store
from tally.balance.v1 import balance_pb2 as pb
from tally.type.v1.money_pb2 import Money
from tests.support.crowd import Crowd


def won(amount_minor: int, *, currency: str = "KRW") -> Money:
    return Money(currency_code=currency, amount_minor=amount_minor)


def charge(
    user_id: str, amount_minor: int, request_id: str, *, currency: str = "KRW"
) -> pb.ChargeBalanceRequest:
    amount = won(amount_minor, currency=currency)
    return pb.ChargeBalanceRequest(user_id=user_id, amount=amount, request_id=request_id)


def deduct(
    user_id: str, amount_minor: int, request_id: str, *, currency: str = "KRW", **fields: Any
) -> pb.DeductBalanceRequest:
    amount = won(amount_minor, currency=currency)
    return pb.DeductBalanceRequest(user_id=user_id, amount=amount, request_id=request_id, **fields)


def refund(user_id: str, deduct_request_id: str, request_id: str) -> pb.RefundDeductionRequest:
    return pb.RefundDeductionRequest(
        user_id=user_id, deduct_request_id=deduct_request_id, request_id=request_id
    )


def batch(*requests: Message) -> pb.BatchWriteRequest:
    """The requests as items of one call."""
    return pb.BatchWriteRequest(items=[_item(request) for request in requests])


def _item(request: Message) -> pb.BatchWriteItem:
    if isinstance(request, pb.ChargeBalanceRequest):
        return pb.BatchWriteItem(charge=request)
    if isinstance(request, pb.DeductBalanceRequest):
        return pb.BatchWriteItem(deduct=request)
    assert isinstance(request, pb.RefundDeductionRequest)
    return pb.BatchWriteItem(refund=request)


def balance_of(user_id: str, currency: str = "KRW") -> pb.GetBalanceRequest:
    return pb.GetBalanceRequest(user_id=user_id, currency_code=currency)


def entry_of(user_id: str, entry_id: str) -> pb.GetLedgerEntryRequest:
    return pb.GetLedgerEntryRequest(user_id=user_id, entry_id=entry_id)


async def available(balance: Any, user_id: str, currency: str = "KRW") -> int:
    """What the user has to spend, in minor units."""
    request = balance_of(user_id, currency)
    return int((await balance.GetBalance(request)).balance.available.amount_minor)


def check_ledger(crowd: Crowd[Any]) -> None:
    """Each balance is the sum of its entries and its last balance_after, without gaps.

    The sum of its charges is that of its entries.
    """
    wrong = crowd.number(
        """
        SELECT count(*) FROM accounts a LEFT JOIN (
            SELECT user_id, currency_code, sum(amount_minor) AS total, count(*) AS entries,
                   max(sequence) AS last,
                   sum(amount_minor) FILTER (WHERE kind = 'CHARGE') AS charged,
                   (array_agg(balance_after_minor ORDER BY sequence DESC))[1] AS after
            FROM ledger_entries GROUP BY user_id, currency_code) e
        USING (user_id, currency_code)
        WHERE (a.available_minor, a.available_minor, a.version, a.version, a.version)
              IS DISTINCT FROM (coalesce(e.total, 0), coalesce(e.after, 0),
                                coalesce(e.entries, 0), coalesce(e.last, 0), a.charged_at_version)
           OR a.charged_minor <> coalesce(e.charged, 0);
        """
    )
    assert wrong == 0


# -- the release before balance_0002 -------------------------------------------------------------


def written_before(
    user_id: str, *amounts_minor: int, version: int = 0, available_minor: int = 0
) -> str:
    """SQL that changes an account in the statements of that release, which counts no charges.

    ``amounts_minor``: positive ones are charges, negative ones deductions; their request_ids are
    ``old-`` and the sequence. ``version``, ``available_minor``: of the account before; without,
    it is opened.
    """
    entries = []
    for number, amount in enumerate(amounts_minor, version + 1):
        available_minor += amount
        kind = "CHARGE" if amount > 0 else "DEDUCT"
        entries.append(
            f"('{user_id}', 'KRW', {number}, gen_random_uuid(), '{kind}', {amount},"
            f" {available_minor}, 'old-{number}', NULL, NULL, now())"
        )
    opened = (
        "INSERT INTO accounts (user_id, currency_code, available_minor, version, update_time)"
        f" VALUES ('{user_id}', 'KRW', 0, 0, now()) ON CONFLICT DO NOTHING;"
    )
    return f"""
        {opened}
        UPDATE accounts SET available_minor = {available_minor},
               version = {version + len(entries)}, update_time = now()
         WHERE user_id = '{user_id}' AND version = {version};
        INSERT INTO ledger_entries (user_id, currency_code, sequence, entry_id, kind, amount_minor,
                                    balance_after_minor, request_id, order_id, refund_of,
                                    create_time)
        VALUES {", ".join(entries)};
        """


# -- removed guards ------------------------------------------------------------------------------


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write accounts without comparing versions: the second line of an optimistic charge."""
    changed, accounts = store._changed, tables.accounts
    monkeypatch.setattr(
        store,
        "_SAVE",
        sa.update(accounts)
        .values({name: changed.c[name] for name in store._WRITTEN})
        .where(*(column == changed.c[column.key] for column in store._account_key))
        .returning(*store._account_key),
    )


def drop_constraints(crowd: Crowd[Any]) -> None:
    """Remove the last line of defence."""
    crowd.sql(
        f"""
        ALTER TABLE ledger_entries DROP CONSTRAINT {tables.SEQUENCE_ONCE};
        ALTER TABLE accounts DROP CONSTRAINT {tables.AVAILABLE_NOT_NEGATIVE},
                             DROP CONSTRAINT {tables.AVAILABLE_WAS_CHARGED};
        """
    )
