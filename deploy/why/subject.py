"""What an id is, and whose: looked up in the databases of all services."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.errors import sqlstate
from common.ids import is_id
from deploy.why.databases import Databases
from deploy.why.event import Row
from deploy.why.selection import Selection, rows
from deploy.why.traces import TRACE

USERS_MAX: Final = 10
"""Users of one request_id, which is unique only per user, that are shown."""
SCAN_MS: Final = 30_000
"""Time limit of the search for a request_id without its user, in each database."""

_STEP: Final = re.compile(r"(?P<saga_id>[0-9a-f-]{36}):(?P<step>[a-z_]+)(?::undo)?")
_QUERY_CANCELED: Final = "57014"

_BY_OWN_ID: Final = (
    (
        "order",
        "order",
        "SELECT user_id, order_id::text AS order_id FROM orders WHERE order_id = :id",
    ),
    ("saga", "order", "SELECT user_id, order_id::text AS order_id FROM sagas WHERE saga_id = :id"),
    ("payment", "payment", "SELECT user_id, order_id FROM payments WHERE payment_id = :id"),
    ("coupon", "coupon", "SELECT user_id, order_id FROM coupons WHERE coupon_id = :id"),
)
"""What a service's own id may be: its kind, the service, and the statement."""
_PAYMENT_KEY: Final = """
SELECT user_id, order_id, payment_id::text AS payment_id FROM payments WHERE payment_key = :id
"""
_USER: Final = {
    "order": "SELECT 1 FROM orders WHERE user_id = :id UNION ALL"
    " SELECT 1 FROM carts WHERE user_id = :id LIMIT 1",
    "balance": "SELECT 1 FROM accounts WHERE user_id = :id LIMIT 1",
    "coupon": "SELECT 1 FROM coupons WHERE user_id = :id LIMIT 1",
    "payment": "SELECT 1 FROM payments WHERE user_id = :id LIMIT 1",
}
_ANSWERS: Final = (
    "SELECT scope AS user_id, method, state, create_time FROM answers WHERE request_id = :id"
)
# The stored answers of all services; then the rows themselves, which outlive them.
_REQUESTS: Final = {
    "order": (
        _ANSWERS,
        "SELECT user_id, 'CREATE_ORDER' AS method FROM orders WHERE request_id = :id",
        "SELECT user_id, kind AS method FROM sagas WHERE request_id = :id",
    ),
    "balance": (
        _ANSWERS,
        "SELECT user_id, kind AS method FROM ledger_entries WHERE request_id = :id",
    ),
    "coupon": (
        _ANSWERS,
        "SELECT user_id, 'ISSUE' AS method FROM coupons WHERE request_id = :id",
        "SELECT user_id, 'REDEEM' AS method FROM redemptions WHERE request_id = :id",
    ),
    "payment": (
        _ANSWERS,
        "SELECT user_id, 'CONFIRM' AS method FROM payments WHERE request_id = :id",
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What an id is."""

    kind: str
    """order, saga, step, payment, payment_key, coupon, user, request_id or trace."""
    id: str
    selections: tuple[Selection, ...]
    uses: tuple[str, ...] = ()
    """Of a request_id: the methods that stored an answer for it, and whose."""
    unread: tuple[str, ...] = ()
    """Services whose database took too long to search."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """An id that is nowhere."""

    id: str
    looked: tuple[str, ...]
    """Where, and where not."""
    hints: tuple[str, ...] = ()
    databases: Mapping[str, str] = field(default_factory=dict)
    """By service, the place of the database that was read, without user and password."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """By service, why its database could not be read."""


async def find(databases: Databases, id_: str, user_id: str, newest: int) -> Subject | Unknown:
    """What the id is. ``user_id``: whose request_id it is, '' if that is not known."""
    if user_id:
        selection = Selection(user_id, request_ids=(id_,))
        return Subject("request_id", id_, (selection,), await _uses(databases, id_, user_id))
    found = await _by_own_id(databases, id_) or await _by_step(databases, id_)
    found = found or await _by_payment_key(databases, id_)
    found = found or await _by_user(databases, id_, newest)
    return found or await _by_request(databases, id_)


async def find_trace(databases: Databases, trace_id: str, ids: Sequence[str]) -> Subject | None:
    """Everything about the ids that the log lines of a trace have; None if there is nothing."""
    found = [one for id_ in ids if isinstance(one := await find(databases, id_, "", 0), Subject)]
    if not found:
        return None
    selections = dict.fromkeys(each for one in found for each in one.selections)
    uses = dict.fromkeys(use for one in found for use in one.uses)
    unread = dict.fromkeys(service for one in found for service in one.unread)
    return Subject("trace", trace_id, tuple(selections), tuple(uses), tuple(unread))


def nowhere(
    id_: str, user_id: str, *, databases: Mapping[str, str], unread: Mapping[str, str]
) -> Unknown:
    """A request_id that this user has never sent, or that left no row."""
    without = f"Without --user it is looked for as an id of every kind, and not only of {user_id}."
    looked = (f"request_ids of user {user_id} in {', '.join(_REQUESTS)}",)
    return Unknown(id_, looked, (without, *_hints(id_)), databases, unread)


async def _by_own_id(databases: Databases, id_: str) -> Subject | None:
    if not is_id(id_):
        return None
    for kind, service, statement in _BY_OWN_ID:
        for row in await databases.rows(service, statement, id=id_):
            selection = Selection(
                row["user_id"],
                order_ids=(row["order_id"],) if row["order_id"] else (),
                payment_ids=(id_,) if kind == "payment" else (),
                coupon_ids=(id_,) if kind == "coupon" else (),
            )
            return Subject(kind, id_, (selection,))
    return None


async def _by_step(databases: Databases, id_: str) -> Subject | None:
    match = _STEP.fullmatch(id_)
    saga = None if match is None else await _by_own_id(databases, match["saga_id"])
    return None if saga is None else Subject("step", id_, saga.selections)


async def _by_payment_key(databases: Databases, id_: str) -> Subject | None:
    for row in await databases.rows("payment", _PAYMENT_KEY, id=id_):
        selection = Selection(row["user_id"], (row["order_id"],), payment_ids=(row["payment_id"],))
        return Subject("payment_key", id_, (selection,))
    return None


async def _by_user(databases: Databases, id_: str, newest: int) -> Subject | None:
    for service, statement in _USER.items():
        if await databases.rows(service, statement, id=id_):
            return Subject("user", id_, (Selection(id_, newest=newest),))
    return None


async def _by_request(databases: Databases, id_: str) -> Subject | Unknown:
    """The users whose request has this id. No index has the request_id alone."""
    users: dict[str, None] = {}
    uses: dict[str, None] = {}
    unread: list[str] = []
    for service, statements in _REQUESTS.items():
        search = partial(_search, statements=statements, id_=id_)
        nothing: list[Row] | None = []
        found = await databases.read(service, search, nothing)
        if found is None:
            unread.append(service)
        for row in found or ():
            users[row["user_id"]] = None
            uses[_use(row)] = None
    if not uses:
        return Unknown(id_, tuple(_looked(unread, databases.unread)), tuple(_hints(id_)))
    kept = list(users)[:USERS_MAX]
    selections = tuple(Selection(user_id, request_ids=(id_,)) for user_id in kept)
    return Subject("request_id", id_, selections, tuple(uses)[:USERS_MAX], tuple(unread))


async def _search(
    connection: AsyncConnection, *, statements: tuple[str, ...], id_: str
) -> list[Row] | None:
    """The rows of the first statement that has any; None if the search takes too long."""
    try:
        async with connection.begin_nested():
            await connection.execute(sa.text(f"SET LOCAL statement_timeout = {SCAN_MS}"))
            return await _first(connection, statements, id_)
    except DBAPIError as error:
        if sqlstate(error) != _QUERY_CANCELED:
            raise
        return None


async def _first(connection: AsyncConnection, statements: tuple[str, ...], id_: str) -> list[Row]:
    """The rows of the first statement that has any."""
    for statement in statements:
        limited = sa.text(f"{statement} LIMIT {USERS_MAX}")
        if found := await rows(connection, limited, id=id_):
            return found
    return []


async def _uses(databases: Databases, id_: str, user_id: str) -> tuple[str, ...]:
    """The methods that stored an answer for this request of the user."""
    found = []
    for service in _REQUESTS:
        sql = f"{_ANSWERS} AND scope = :user_id"
        found += await databases.rows(service, sql, id=id_, user_id=user_id)
    return tuple(_use(row) for row in found)


def _use(row: Row) -> str:
    who = f" of user {row['user_id']}" if row["user_id"] else ""
    state = f" {row['state']}" if row.get("state") else ""
    return f"{row['method']}{who}{state}"


def _looked(unread: Sequence[str], away: Mapping[str, str]) -> Iterator[str]:
    yield "orders, sagas, payments and coupons by their id; payments by payment_key"
    yield "users with an account, an order, a cart, a coupon or a payment"
    searched = [service for service in _REQUESTS if service not in (*unread, *away)]
    yield f"request_ids in {', '.join(searched)}"
    if unread:
        yield f"NOT request_ids in {', '.join(unread)}: the search took too long; give --user"


def _hints(id_: str) -> Iterator[str]:
    if TRACE.fullmatch(id_):
        yield (
            "It has the form of a trace id. Traces are not in the databases: search the logs for"
            " it, and ask for the order_id or request_id of those lines."
        )
    yield (
        "A call that was refused leaves no row (but a declined payment, and a PayOrder): search"
        " the logs for the request_id."
    )
