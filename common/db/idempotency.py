"""Idempotency records: what became of each request_id, written in the effect's own transaction.

A service has one table, ``answers``. A row is ANSWERED (return the stored response again), REFUSED
(an attempt with outside effects was refused; return the stored refusal again) or CANCELLED, a
tombstone (the request was compensated, before or after it arrived, and must never happen). No row:
the request has not happened. Other refusals are not stored.

Rows of the business are locked before records are read, so that a duplicate that waited for a row
reads the first one's response; or by the same statement, if no row has changed meanwhile. Records
are written last, in ascending order, so that two batches cannot deadlock on them: in one statement
with other writes of the batch, after these.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import Insert

from common.db.database import Database
from common.db.errors import RecordConflict
from common.db.repeat import in_transaction
from common.db.row_locks import CLOCK, TIME, AlsoRead, locked
from common.db.statements import Connection
from common.db.transactions import commit_as_a_write
from common.db.unnest import arrays, arrays_of_tuples, insert_from, same, unnest
from common.db.writes import Write, execute_together
from common.errors import RequestIdReused
from common.request_key import IdempotentCommand, RequestKey, Result

T = TypeVar("T")

KEEP_DAYS: Final = 30
ANSWERED: Final = "ANSWERED"
REFUSED: Final = "REFUSED"
CANCELLED: Final = "CANCELLED"
CLEAN_UP_ROWS: Final = 5_000
"""Rows deleted in one transaction: few enough not to delay other transactions."""
CLEAN_UP_INTERVAL_S: Final = 600.0
_KEY: Final = ("method", "scope", "request_id")
_COLUMNS: Final = (*_KEY, "state", "digest", "body")


def idempotency_table(metadata: sa.MetaData) -> sa.Table:
    """The table, the same in every service."""
    return sa.Table(
        "answers",
        metadata,
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("create_time", TIME, nullable=False, server_default=CLOCK),
        sa.CheckConstraint("state IN ('ANSWERED', 'REFUSED', 'CANCELLED')", name="answers_state"),
        sa.CheckConstraint(
            "(body IS NULL) = (state = 'CANCELLED')", name="answers_body_unless_cancelled"
        ),
        sa.Index(
            "answers_to_clean_up", "create_time", postgresql_where=sa.text("state <> 'CANCELLED'")
        ),
    )


DDL: Final = """
CREATE TABLE answers (
    method      text NOT NULL,
    scope       text NOT NULL,
    request_id  text NOT NULL,
    state       text NOT NULL
                CONSTRAINT answers_state CHECK (state IN ('ANSWERED', 'REFUSED', 'CANCELLED')),
    digest      bytea NOT NULL,
    body        text,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT answers_pkey PRIMARY KEY (method, scope, request_id),
    CONSTRAINT answers_body_unless_cancelled CHECK ((body IS NULL) = (state = 'CANCELLED'))
);
CREATE INDEX answers_to_clean_up ON answers (create_time) WHERE state <> 'CANCELLED';
"""
"""Executed by a service's first migration and frozen with it: change it by a new migration."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a request."""

    state: str
    digest: bytes
    body: str | None

    @property
    def cancelled(self) -> bool:
        """Whether the record is a tombstone."""
        return self.state == CANCELLED

    def check_same(self, command: IdempotentCommand) -> None:
        """Raise RequestIdReused unless the command has the same content as the recorded request."""
        if self.digest != command.digest:
            raise RequestIdReused(request_id=command.key.request_id)

    def body_for(self, command: IdempotentCommand) -> str:
        """The stored body, if the command has the same content as the recorded request.

        Raises RequestIdReused if it has not. Check ``cancelled`` first.
        """
        self.check_same(command)
        assert self.body is not None
        return self.body


class IdempotencyRecords:
    """The records of one batch: read once, then consulted and added to, written once."""

    def __init__(self, found: dict[RequestKey, Record]) -> None:
        self._known = found
        self.replays = bool(found)
        """Whether a reply may repeat what was written before: by a record, or by another row."""
        self.new: dict[RequestKey, Record] = {}
        """What this batch added."""

    def get(self, key: RequestKey) -> Record | None:
        """The request's record, from the database or from earlier in this batch."""
        return self._known.get(key)

    def is_cancelled(self, key: RequestKey) -> bool:
        """Whether the request has a tombstone."""
        record = self._known.get(key)
        return record is not None and record.cancelled

    def replay(self, command: IdempotentCommand, body: TypeAdapter[T]) -> Result[T] | None:
        """The response recorded for the command, or None. Raises RequestIdReused.

        Commands that can be cancelled check ``is_cancelled`` first.
        """
        record = self._known.get(command.key)
        if record is None:
            return None
        return Result(body.validate_json(record.body_for(command)), replayed=True)

    def answer(self, command: IdempotentCommand, value: T, body: TypeAdapter[T]) -> Result[T]:
        """Record that the command was carried out; a repetition gets ``value`` again."""
        self._put(command.key, Record(ANSWERED, command.digest, body.dump_json(value).decode()))
        return Result(value)

    def refuse(self, command: IdempotentCommand, value: T, body: TypeAdapter[T]) -> None:
        """Record that the attempt was refused; a repetition gets the same refusal."""
        self._put(command.key, Record(REFUSED, command.digest, body.dump_json(value).decode()))

    def cancel(self, key: RequestKey) -> None:
        """Record a tombstone: the request, carried out or never seen, must not happen any more."""
        before = self._known.get(key)
        self._put(key, Record(CANCELLED, before.digest if before else b"", None))

    def forget(self, keys: Iterable[RequestKey]) -> None:
        """Drop what was added for these requests, whose rows were not saved."""
        for key in keys:
            self.new.pop(key, None)

    def _put(self, key: RequestKey, record: Record) -> None:
        self._known[key] = self.new[key] = record


class IdempotencyStore:
    """The statements on a service's table of idempotency records."""

    def __init__(self, table: sa.Table) -> None:
        self._asked = unnest("asked", *table.c[_KEY])
        self._find = sa.select(*table.c[_COLUMNS]).join_from(
            self._asked, table, same(table, self._asked)
        )
        self._column = _all_as_json(self._find)
        self._added = unnest("record", *table.c[_COLUMNS])
        self._save = _save(table, self._added)
        self._clean_up = _clean_up(table)

    def asked(self, keys: Iterable[RequestKey]) -> AlsoRead:
        """The records of ``keys``, for the statement that locks the rows they concern."""
        return AlsoRead(self._column, arrays(self._asked, set(keys)))

    async def load(self, connection: Connection, keys: Iterable[RequestKey]) -> IdempotencyRecords:
        """Read the records of ``keys``, after the rows they concern have been locked."""
        return await self.load_asked(connection, self.asked(keys))

    async def load_asked(self, connection: Connection, asked: AlsoRead) -> IdempotencyRecords:
        """Read the records, unless the statement that locked their rows has."""
        rows: Iterable[Sequence[Any]]
        if asked.is_read:
            rows = () if asked.value is None else map(_of_json, json.loads(asked.value))
        else:
            rows = await connection.execute(self._find, asked.parameters)
        return IdempotencyRecords({RequestKey(*row[:3]): Record(*row[3:]) for row in rows})

    async def save(
        self, connection: Connection, records: IdempotencyRecords, before: Sequence[Write] = ()
    ) -> None:
        """Write what is new, in ascending order, in one statement with the writes ``before`` it.

        Raises RecordConflict if another transaction was first, or what these writes name.

        If nothing is new and something is replayed, that must be as durable as when it
        was written: the server that wrote it may have lost its standby before it replied.
        """
        if not records.new:
            await execute_together(connection, before)
            if records.replays:
                await commit_as_a_write(connection)
            return
        rows = [
            (*key, record.state, record.digest, record.body)
            for key, record in sorted(records.new.items())
        ]
        parameters = arrays_of_tuples(self._added, rows)
        added = Write(self._save, parameters, len(rows), lost=RecordConflict)
        await execute_together(connection, [*before, added])

    async def clean_up(self, database: Database, stopping: asyncio.Event) -> int:
        """Delete records older than KEEP_DAYS, some at a time; returns how many.

        Ends after the batch in which ``stopping`` is set. Tombstones stay for ever: what was
        compensated must not happen, however late it arrives.
        """
        deleted = 0
        while True:
            result = await in_transaction(
                database,
                "clean_up_answers",
                lambda connection: connection.execute(self._clean_up),
                idempotent=True,
            )
            deleted += result.rowcount
            if result.rowcount < CLEAN_UP_ROWS or stopping.is_set():
                return deleted


def _all_as_json(rows: sa.Select[Any]) -> sa.ScalarSelect[Any]:
    """All of these rows as one value: a JSON array of arrays; NULL if there are none."""
    found = rows.subquery("record")
    values = [
        sa.func.encode(column, "hex") if column.key == "digest" else column for column in found.c
    ]
    return sa.select(sa.func.json_agg(sa.func.json_build_array(*values))).scalar_subquery()


def _of_json(row: Sequence[Any]) -> Sequence[Any]:
    *key, state, digest, body = row
    return *key, state, bytes.fromhex(digest), body


def _save(table: sa.Table, added: sa.TableValuedAlias) -> Insert:
    # Sorted in SQL too: rows are inserted in the order in which the SELECT returns them.
    inserting = insert_from(table, added, _KEY)
    # A response replaces nothing. A tombstone replaces the response that its transaction has read,
    # and no other: compensating one that came in between would be lost. It takes a new create_time:
    # the audit measures a refund's delay from it.
    return inserting.on_conflict_do_update(
        constraint="answers_pkey",
        set_={name: inserting.excluded[name] for name in ("state", "body", "create_time")},
        where=sa.and_(
            inserting.excluded.state == CANCELLED, inserting.excluded.digest == table.c.digest
        ),
    )


def _clean_up(table: sa.Table) -> sa.Executable:
    # The limit counts rows that could be locked: however many others are held, it goes past them.
    # They are not locked in key order, and need not be, since none is waited for.
    old = (
        sa.select(*table.c[_KEY])
        .where(table.c.create_time < sa.func.now() - sa.text(f"interval '{KEEP_DAYS} days'"))
        .where(table.c.state != sa.literal_column(f"'{CANCELLED}'"))
        .limit(CLEAN_UP_ROWS)
    )
    deleted = locked(table, old, order_by=[table.c.create_time], skip_locked=True)
    return sa.delete(table).where(same(table, deleted))
