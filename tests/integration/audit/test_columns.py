"""Every stored value is checked: change any column of any row, and the audit reports it.

``UNCHECKED`` has the columns whose values nothing else records, each with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

import balance_service.tables
import coupon_service.tables
import order_service.tables
import payment_service.tables
from tests.integration.audit.conftest import Planted

METADATA: Final = {
    "balance": balance_service.tables.metadata,
    "coupon": coupon_service.tables.metadata,
    "order": order_service.tables.metadata,
    "payment": payment_service.tables.metadata,
}
_SET_ANEW: Final = "it is set anew with each write"
_WORK: Final = "it says who works on the row and when, not what became of it"
_TEXT: Final = "a text for people"
_ORIGIN: Final = "it counts for an effect without a saga only"
UNCHECKED: Final = {
    "answers.digest": "the request that it is the digest of is not stored",
    "answers.create_time": "when the answer is deleted depends on it, and nothing else",
    "accounts.charged_at_version": "an older sum of charges counts as none",
    "ledger_entries.origin": _ORIGIN,
    "redemptions.origin": _ORIGIN,
    "payments.origin": _ORIGIN,
    "campaigns.queue_fence": _WORK,
    "orders.version": _SET_ANEW,
    "orders.failure_reason": _TEXT,
    "products.version": _SET_ANEW,
    "products.update_time": _SET_ANEW,
    "carts.*": "carts hold no stock and no money",
    "cart_items.*": "carts hold no stock and no money",
    "heartbeat.*": "test_breaches moves it",
    "sagas.plan_version": "the release that began the saga",
    "sagas.epoch": _SET_ANEW,
    "sagas.snapshot": _SET_ANEW,
    "sagas.owner": _WORK,
    "sagas.lease_until": "test_breaches sets it back",
    "sagas.pivot_by": _WORK,
    "sagas.attempts": _WORK,
    "sagas.next_attempt_time": _WORK,
    "sagas.waits_for": _WORK,
    "sagas.last_error": _TEXT,
    "sagas.resolution_reason": "test_breaches compares it with the answer of ResolveSaga",
    "sagas.update_time": _SET_ANEW,
    "payments.cancel_reason": _TEXT,
    "payments.cancel_request_id": "the request that cancelled first; a second one is as good",
    "payments.cancel_request_time": "a time of its own",
    "payments.holder": _WORK,
    "payments.due_time": "test_breaches sets it back",
    "payments.tries": _WORK,
    "payments.version": _SET_ANEW,
    "payments.update_time": _SET_ANEW,
    "payments.confirm_time": _WORK,
    "payments.check_time": _WORK,
    "payments.refund_refusal_code": _TEXT,
    "payments.resolution_reason": _TEXT,
    "payments.unsupported_status": _TEXT,
}


def columns() -> Iterator[tuple[str, sa.Column[object]]]:
    for service, metadata in METADATA.items():
        for table in metadata.sorted_tables:
            for column in table.columns:
                names = {f"{table.name}.*", f"{table.name}.{column.name}"}
                if not names & UNCHECKED.keys():
                    yield service, column


def changed(column: sa.Column[object]) -> str:
    """SQL: another value of the column's type, for all rows."""
    name = column.name
    if f"{column.table.name}.{name}" == "sagas.steps":
        return "jsonb_set(steps, '{0,state}', '\"BEGUN\"')"
    if name == "body":
        return "CASE WHEN body LIKE '{%' THEN '{}' ELSE body END"
    match column.type:
        case sa.DateTime():
            return f"{name} + interval '400 days'"
        case sa.BigInteger() | sa.Integer():
            return f"coalesce({name}, 0) + 1000000"
        case sa.Boolean():
            return f"NOT {name}"
        case sa.UUID():
            return f"overlay({name}::text placing '01900001' from 1)::uuid"
        case JSONB():
            return "'{}'"
        case _:
            return f"{name} || 'x'"


DROP_CONSTRAINTS: Final = """
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT conname, conrelid::regclass AS of_table FROM pg_constraint WHERE contype = 'c'
                  AND connamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of_table, one.conname);
    END LOOP;
END $$;
"""


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("service", "column"),
    [*columns()],
    ids=lambda one: str(one) if isinstance(one, sa.Column) else one,
)
async def test_any_other_value_is_a_breach(
    planted: Planted, service: str, column: sa.Column[object]
) -> None:
    update = f"UPDATE {column.table.name} SET {column.name} = {changed(column)}"
    assert (await planted.pass_with(service, f"{DROP_CONSTRAINTS} {update}")).differences


def test_what_is_not_checked_exists() -> None:
    """An entry of ``UNCHECKED`` whose column is gone, or was never there, hides nothing."""
    tables = [table for metadata in METADATA.values() for table in metadata.sorted_tables]
    known = {str(column) for table in tables for column in table.columns}
    assert UNCHECKED.keys() <= known | {f"{table.name}.*" for table in tables}
