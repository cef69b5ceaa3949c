"""The gateway's durable record: payments, cancels, calls and stored responses in a SQLite file.

``dashboard_cancels`` names the cancels that people made in the gateway's own dashboard.

Every decision is one transaction, flushed to disk before the response is sent: neither kill -9 nor
a lost response can make the record and the response differ. The primary key of ``payments`` allows
one charge per payment key.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from deploy.local.gateway.rules import Behaviour, behaviour_of
from deploy.local.gateway.wire import Cancel, Confirm, Reply, error

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS payments (
    payment_key     TEXT PRIMARY KEY,
    order_id        TEXT NOT NULL,
    status          TEXT NOT NULL,
    currency        TEXT NOT NULL,
    total_amount    INTEGER NOT NULL CHECK (total_amount > 0),
    balance_amount  INTEGER NOT NULL CHECK (balance_amount BETWEEN 0 AND total_amount),
    transaction_key TEXT NOT NULL UNIQUE,
    requested_at    TEXT NOT NULL,
    approved_at     TEXT,
    failure_code    TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS cancels (
    transaction_key TEXT PRIMARY KEY,
    payment_key     TEXT NOT NULL REFERENCES payments,
    amount          INTEGER NOT NULL CHECK (amount > 0),
    reason          TEXT NOT NULL,
    canceled_at     TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS cancels_by_payment ON cancels (payment_key);
CREATE TABLE IF NOT EXISTS dashboard_cancels (
    transaction_key TEXT PRIMARY KEY REFERENCES cancels
) STRICT;
CREATE TABLE IF NOT EXISTS calls (
    call_id         INTEGER PRIMARY KEY,
    operation       TEXT NOT NULL,
    payment_key     TEXT NOT NULL,
    idempotency_key TEXT,
    http_status     INTEGER NOT NULL,
    called_at       TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS calls_by_payment ON calls (payment_key);
CREATE TABLE IF NOT EXISTS answers (
    address         TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    http_status     INTEGER NOT NULL,
    body            TEXT NOT NULL,
    PRIMARY KEY (address, idempotency_key)
) STRICT;
"""

# The objects of the protocol, by their field names.
_PAYMENT: Final = """
SELECT 'tally-local' AS mId, '2022-11-16' AS version, payment_key AS paymentKey,
       order_id AS orderId, status, currency, total_amount AS totalAmount,
       balance_amount AS balanceAmount, '카드' AS method, requested_at AS requestedAt,
       approved_at AS approvedAt, transaction_key AS lastTransactionKey, NULL AS cancels,
       failure_code AS failure
  FROM payments
 WHERE payment_key = ?
"""
_CANCELS: Final = """
SELECT transaction_key AS transactionKey, amount AS cancelAmount, reason AS cancelReason,
       canceled_at AS canceledAt, 'DONE' AS cancelStatus
  FROM cancels
 WHERE payment_key = ?
 ORDER BY canceled_at
"""
_RECORDS: Final = """
SELECT payment_key AS paymentKey, sum(operation = 'confirm') AS confirmCalls,
       sum(operation = 'cancel') AS cancelCalls
  FROM calls
 GROUP BY payment_key
 ORDER BY payment_key
"""

_SEOUL: Final = timezone(timedelta(hours=9))
_OK: Final = 200
_SERVER_ERROR: Final = 500


class Ledger:
    """The record, in one file. For one thread; a call blocks while it flushes to disk."""

    def __init__(self, data_file: Path) -> None:
        """Open or create the file. Raises sqlite3.Error if it cannot be used."""
        self._db = sqlite3.connect(data_file, isolation_level=None)
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def confirm(self, request: Confirm, idempotency_key: str | None) -> Reply:
        """Charge, decline or fail by the key's prefix, and store the response."""
        return self._once(
            ("confirm", request.payment_key),
            "POST /v1/payments/confirm",
            idempotency_key,
            lambda: self._decide_confirm(request),
        )

    def cancel(self, payment_key: str, request: Cancel, idempotency_key: str | None) -> Reply:
        """Cancel all that is left, or the given amount, and store the response."""
        return self._once(
            ("cancel", payment_key),
            f"POST /v1/payments/{payment_key}/cancel",
            idempotency_key,
            lambda: self._decide_cancel(payment_key, request),
        )

    def dashboard_cancel(self, payment_key: str, request: Cancel) -> Reply:
        """Cancel what a person cancels in the dashboard, whatever the key's behaviour."""
        with self._transaction():
            payment = self._payment(payment_key)
            if payment is None or payment["status"] not in {"DONE", "PARTIAL_CANCELED"}:
                return error("NOT_CANCELABLE_PAYMENT")
            reply = self._give_back(payment, request)
            if reply.status == _OK:
                self._insert("dashboard_cancels", reply.body["lastTransactionKey"])
        return reply

    def deposit(self, payment_key: str) -> Reply:
        """The customer pays into the virtual account."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE payments SET status = 'DONE', approved_at = ?"
                " WHERE payment_key = ? AND status = 'WAITING_FOR_DEPOSIT'",
                (_now(), payment_key),
            ).rowcount
        return self.find(payment_key) if changed else error("ALREADY_PROCESSED_PAYMENT")

    def find(self, payment_key: str) -> Reply:
        """The payment as it is now."""
        payment = self._payment(payment_key)
        return error("NOT_FOUND_PAYMENT") if payment is None else Reply(200, payment)

    def reject_concurrent(
        self, operation: str, payment_key: str, idempotency_key: str | None
    ) -> Reply:
        """Count and refuse a call while another with its idempotency key is in progress."""
        reply = error("IDEMPOTENT_REQUEST_PROCESSING")
        with self._transaction():
            self._count(operation, payment_key, idempotency_key, reply.status)
        return reply

    def records(self) -> list[dict[str, Any]]:
        """All keys, each with its payment and numbers of calls."""
        return [
            {**row, "payment": self._payment(row["paymentKey"])}
            for row in self._db.execute(_RECORDS).fetchall()
        ]

    def _once(
        self,
        call: tuple[str, str],
        address: str,
        idempotency_key: str | None,
        decide: Callable[[], Reply],
    ) -> Reply:
        with self._transaction():
            stored = self._stored(address, idempotency_key)
            reply = stored or decide()
            self._count(*call, idempotency_key, reply.status)
            if stored is None and idempotency_key is not None and reply.status < _SERVER_ERROR:
                body = json.dumps(reply.body)
                self._insert("answers", address, idempotency_key, reply.status, body)
        return reply

    def _stored(self, address: str, idempotency_key: str | None) -> Reply | None:
        # As in the real protocol, key and address decide, and the body is not compared: another
        # payment under a used key gets the first payment, which the client must notice.
        row = self._db.execute(
            "SELECT http_status, body FROM answers WHERE address = ? AND idempotency_key = ?",
            (address, idempotency_key),
        ).fetchone()
        return None if row is None else Reply(row["http_status"], json.loads(row["body"]))

    def _decide_confirm(self, request: Confirm) -> Reply:
        if self._payment(request.payment_key) is not None:
            return error("ALREADY_PROCESSED_PAYMENT")
        match behaviour_of(request.payment_key):
            case Behaviour.DECLINE:
                return self._decline(request, "REJECT_CARD_PAYMENT")
            case Behaviour.ERROR | Behaviour.ERROR_ONCE if not self._confirms(request.payment_key):
                return error("FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING")
            case Behaviour.ERROR:
                return self._decline(request, "REJECT_CARD_COMPANY")
            case Behaviour.DEPOSIT:
                payment = self._record(request, "WAITING_FOR_DEPOSIT", None)
                return Reply(200, payment, fresh=True)
            case _:
                payment = self._record(request, "DONE", None)
                return Reply(200, payment, fresh=True)

    def _decline(self, request: Confirm, code: str) -> Reply:
        self._record(request, "ABORTED", code)
        return error(code)

    def _decide_cancel(self, payment_key: str, request: Cancel) -> Reply:
        payment = self._payment(payment_key)
        if payment is None:
            return error("NOT_FOUND_PAYMENT")
        if payment["status"] == "CANCELED":
            return error("ALREADY_CANCELED_PAYMENT")
        if payment["status"] == "WAITING_FOR_DEPOSIT":
            return self._close(payment_key)
        if payment["status"] not in {"DONE", "PARTIAL_CANCELED"}:
            return error("NOT_CANCELABLE_PAYMENT")
        if behaviour_of(payment_key) in {Behaviour.NO_REFUND, Behaviour.DEPOSIT}:
            return error("NOT_CANCELABLE_PAYMENT")
        return self._give_back(payment, request)

    def _give_back(self, payment: dict[str, Any], request: Cancel) -> Reply:
        payment_key = payment["paymentKey"]
        left = payment["balanceAmount"]
        amount = left if request.amount is None else request.amount
        if amount > left:
            return error("NOT_CANCELABLE_AMOUNT")
        transaction_key = uuid.uuid4().hex
        self._insert("cancels", transaction_key, payment_key, amount, request.reason, _now())
        status = "CANCELED" if amount == left else "PARTIAL_CANCELED"
        self._db.execute(
            "UPDATE payments SET status = ?, balance_amount = ?, transaction_key = ?"
            " WHERE payment_key = ?",
            (status, left - amount, transaction_key, payment_key),
        )
        return Reply(200, self._payment(payment_key) or {}, fresh=True)

    def _close(self, payment_key: str) -> Reply:
        """Close a virtual account before its deposit: nothing was taken, nothing is given back."""
        self._db.execute(
            "UPDATE payments SET status = 'CANCELED', balance_amount = 0 WHERE payment_key = ?",
            (payment_key,),
        )
        return Reply(200, self._payment(payment_key) or {}, fresh=True)

    def _record(self, request: Confirm, status: str, failure_code: str | None) -> dict[str, Any]:
        now = _now()
        self._insert(
            "payments",
            *(request.payment_key, request.order_id, status, request.currency),
            *(request.amount, request.amount, uuid.uuid4().hex),
            *(now, now if status == "DONE" else None, failure_code),
        )
        return self._payment(request.payment_key) or {}

    def _payment(self, payment_key: str) -> dict[str, Any] | None:
        row = self._db.execute(_PAYMENT, (payment_key,)).fetchone()
        if row is None:
            return None
        cancels = [dict(one) for one in self._db.execute(_CANCELS, (payment_key,))]
        failure = None if row["failure"] is None else error(row["failure"]).body
        return {**row, "cancels": cancels or None, "failure": failure}

    def _confirms(self, payment_key: str) -> int:
        row = self._db.execute(
            "SELECT count(*) FROM calls WHERE payment_key = ? AND operation = 'confirm'",
            (payment_key,),
        ).fetchone()
        return int(row[0])

    def _count(
        self, operation: str, payment_key: str, idempotency_key: str | None, http_status: int
    ) -> None:
        self._insert("calls", None, operation, payment_key, idempotency_key, http_status, _now())

    def _insert(self, table: str, *row: str | int | None) -> None:
        places = ", ".join("?" * len(row))
        self._db.execute(f"INSERT INTO {table} VALUES ({places})", row)  # noqa: S608 - a constant

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _now() -> str:
    return datetime.now(_SEOUL).isoformat(timespec="milliseconds")
