"""One table of answers per service: idempotency and the saga's undo, in the effect's transaction.

A row says what became of a request: ANSWERED (repeat the answer), REFUSED (an attempt with
outside effects was refused; repeat the refusal) or CANCELLED (its compensation came, before or
after it: it must never happen again). No row: it has not happened. Other refusals leave none.

Rows of the business are locked before answers are read, so that a duplicate that waited for the
row sees the first one's answer; and answers are always written last and in ascending order, so
that two batches cannot wait for each other in a circle.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from common.background import Work
from common.database import Database
from common.errors import RequestIdReused
from common.sets import arrays, unnest

KEEP_DAYS: Final = 30
ANSWERED: Final = "ANSWERED"
REFUSED: Final = "REFUSED"
CANCELLED: Final = "CANCELLED"
CLEAN_UP_ROWS: Final = 5_000
"""Deleted in one transaction: few enough to hold nobody up."""
CLEAN_UP_INTERVAL_S: Final = 600.0
_KEY: Final = ("method", "scope", "request_id")


class RequestKey(NamedTuple):
    """What a request_id is unique in: its method and its user ('' for an administrator's call)."""

    method: str
    scope: str
    request_id: str


class Request(Protocol):
    """A command that is carried out at most once."""

    @property
    def key(self) -> RequestKey: ...

    @property
    def digest(self) -> bytes: ...


def digest_of(*content: str | int | bool | None) -> bytes:
    """A fingerprint of what a request asks for: equal content, equal digest.

    Give all fields after validation except the request_id, in a fixed order.
    """
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    state: str
    digest: bytes
    body: str | None

    @property
    def cancelled(self) -> bool:
        return self.state == CANCELLED

    def body_for(self, request: Request) -> str:
        """The stored body, for a request that is really the same one.

        Raises RequestIdReused when the content differs. Ask ``cancelled`` first.
        """
        if self.digest != request.digest:
            raise RequestIdReused(request_id=request.key.request_id)
        assert self.body is not None
        return self.body


class AnswerTaken(Exception):  # noqa: N818 - somebody else was first, which is no fault
    """Another transaction answered one of these requests meanwhile: go round and replay it."""


def answers_table(metadata: sa.MetaData) -> sa.Table:
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
        sa.Column(
            "create_time",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
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
"""What a service's first migration executes. Frozen with it: change it by a new migration."""


class AnswerBook:
    """The answers that concern one batch: read once, consulted and added to, written once."""

    def __init__(self, save: sa.Executable, found: dict[RequestKey, Answer]) -> None:
        self._save = save
        self._known = found
        self._new: dict[RequestKey, Answer] = {}

    def get(self, key: RequestKey) -> Answer | None:
        """What became of this request, in the database or earlier in this batch."""
        return self._known.get(key)

    def answer(self, request: Request, body: str) -> None:
        """This request was carried out; a repetition is told ``body``."""
        self._put(request.key, Answer(ANSWERED, request.digest, body))

    def refuse(self, request: Request, body: str) -> None:
        """This attempt was refused for good; a repetition is told ``body``."""
        self._put(request.key, Answer(REFUSED, request.digest, body))

    def cancel(self, key: RequestKey) -> None:
        """This request, answered or never seen, must not happen any more."""
        before = self._known.get(key)
        self._put(key, Answer(CANCELLED, before.digest if before else b"", None))

    def _put(self, key: RequestKey, answer: Answer) -> None:
        self._known[key] = self._new[key] = answer

    def forget(self, keys: Iterable[RequestKey]) -> None:
        """Drop what was put for these: their rows moved and were not saved."""
        for key in keys:
            self._new.pop(key, None)

    async def save(self, connection: AsyncConnection) -> None:
        """Write what is new, in ascending order. Raises AnswerTaken if somebody was first."""
        if not self._new:
            return
        keys = sorted(self._new)
        answers = [self._new[key] for key in keys]
        result = await connection.execute(
            self._save,
            arrays(
                "new",
                method=[key.method for key in keys],
                scope=[key.scope for key in keys],
                request_id=[key.request_id for key in keys],
                state=[answer.state for answer in answers],
                digest=[answer.digest for answer in answers],
                body=[answer.body for answer in answers],
            ),
        )
        if result.rowcount != len(keys):
            raise AnswerTaken


class Answers:
    """A service's table of answers."""

    def __init__(self, table: sa.Table) -> None:
        self._find = _find(table)
        self._save = _save(table)
        self._clean_up = _clean_up(table)

    async def open(self, connection: AsyncConnection, keys: Iterable[RequestKey]) -> AnswerBook:
        """Read what became of ``keys``. Call it when the rows they concern are locked."""
        wanted = list(set(keys))
        rows = await connection.execute(
            self._find,
            arrays(
                "asked",
                method=[key.method for key in wanted],
                scope=[key.scope for key in wanted],
                request_id=[key.request_id for key in wanted],
            ),
        )
        found = {
            RequestKey(row.method, row.scope, row.request_id): Answer(
                row.state, row.digest, row.body
            )
            for row in rows
        }
        return AnswerBook(self._save, found)

    async def clean_up(self, database: Database, stopping: asyncio.Event) -> int:
        """Delete the answers older than 30 days, some at a time; returns how many.

        Ends after the batch in which ``stopping`` is set. Cancellations stay for good: what was
        undone must not happen however late it arrives.
        """
        deleted = 0
        while True:
            async with database.begin() as connection:
                result = await connection.execute(self._clean_up)
            deleted += result.rowcount
            if result.rowcount < CLEAN_UP_ROWS or stopping.is_set():
                return deleted

    def kept_small(self, database: Database) -> Work:
        """The clean-up as a work of the background."""
        return Work("clean_up_answers", CLEAN_UP_INTERVAL_S, partial(self.clean_up, database))


def _clean_up(table: sa.Table) -> sa.Executable:
    old = (
        sa.select(table.c.method, table.c.scope, table.c.request_id)
        .where(table.c.create_time < sa.func.now() - sa.text(f"interval '{KEEP_DAYS} days'"))
        .where(table.c.state != sa.literal_column(f"'{CANCELLED}'"))
        .order_by(table.c.create_time)
        .limit(CLEAN_UP_ROWS)
        .subquery("old")
    )
    key = (table.c.method, table.c.scope, table.c.request_id)
    locked = (
        sa.select(*key)
        .join_from(old, table, sa.and_(*(table.c[name] == old.c[name] for name in _KEY)))
        .order_by(*key)
        .with_for_update(of=table, skip_locked=True)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.delete(table).where(*(table.c[name] == locked.c[name] for name in _KEY))


def _find(table: sa.Table) -> sa.Executable:
    asked = unnest("asked", method=sa.Text, scope=sa.Text, request_id=sa.Text)
    same = sa.and_(*(table.c[name] == asked.c[name] for name in _KEY))
    return sa.select(table).join_from(asked, table, same)


def _save(table: sa.Table) -> sa.Executable:
    columns = ("method", "scope", "request_id", "state", "digest", "body")
    types = {name: table.c[name].type for name in columns}
    new = unnest("new", **types)
    # The order is taken in SQL too: rows are inserted as the SELECT gives them.
    ordered = sa.select(new).order_by(new.c.method, new.c.scope, new.c.request_id)
    adding = insert(table).from_select(columns, ordered)
    # An answer overrules nothing. A cancellation overrules the answer it has seen, and no other:
    # one that came in between would lose its undo.
    return adding.on_conflict_do_update(
        constraint="answers_pkey",
        set_={"state": adding.excluded.state, "body": adding.excluded.body},
        where=sa.and_(adding.excluded.state == CANCELLED, adding.excluded.digest == table.c.digest),
    )
