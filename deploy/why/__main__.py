"""`python -m deploy.why ID`: everything about one id, in order of time. Changes nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from deploy.audit.arguments import UNREADABLE, make_parser, run_command
from deploy.audit.databases import open_databases, places_of
from deploy.audit.errors import CannotAudit
from deploy.local.stop_signals import run_stoppable
from deploy.why import balance, coupon, order, payment, report, standing
from deploy.why.databases import Databases, open_sessions
from deploy.why.report import Answer
from deploy.why.selection import Records, Selection, step_requests
from deploy.why.subject import Unknown, find, find_trace, nowhere
from deploy.why.traces import TRACE, ids_of_trace

FOUND, UNKNOWN = 0, 1
NEWEST: Final = 50
ID_CHARS_MAX: Final = 200

_USAGE = """\
Show everything about an id, in order of time. Exit 0 if the id is known, 1 if it is not, 2 if a
database cannot be read: what the others have is shown. Without --data-dir, the databases that
TALLY_<SERVICE>_AUDIT_DATABASE_URL name are read, and without those the default data directory; both
at once are refused.
"""


def why(options: argparse.Namespace) -> int:
    """Show all about the id; the exit code. Raises CannotAudit and RunnerError."""
    id_, user, newest = options.id, options.user, options.newest
    if not 0 < len(id_) <= ID_CHARS_MAX or "\0" in id_:
        raise CannotAudit(f"ID: must have 1 to {ID_CHARS_MAX} characters")
    if newest < 1:
        raise CannotAudit("--newest: must be 1 or more")
    with open_databases(options.data_dir) as databases:
        of_trace = []
        if databases.data_dir is not None and not user and TRACE.fullmatch(id_):
            of_trace = ids_of_trace(databases.data_dir / "logs", id_)
        answer = run_stoppable(answer_of(databases.urls, id_, user, newest, of_trace))
    if isinstance(answer, Unknown):
        text = report.unknown_as_json(answer) if options.json else report.unknown_as_text(answer)
    else:
        text = report.as_json(answer) if options.json else report.as_text(answer)
    sys.stdout.write(text)
    if answer.unread:
        return UNREADABLE
    return UNKNOWN if isinstance(answer, Unknown) else FOUND


async def answer_of(
    urls: Mapping[str, str], id_: str, user_id: str, newest: int, of_trace: Sequence[str] = ()
) -> Answer | Unknown:
    """All that the databases have about the id, or, if it is a trace's, about the ids of its lines.

    Raises CannotAudit if no database can be read.
    """
    async with open_sessions(urls) as databases:
        traced = await find_trace(databases, id_, of_trace)
        subject = traced or await find(databases, id_, user_id, newest)
        if isinstance(subject, Unknown):
            return replace(subject, databases=places_of(urls), unread=databases.unread)
        records = Records()
        for selection in subject.selections:
            await _read(databases, selection, records)
    if user_id and not (subject.uses or records.of_ids):
        return nowhere(id_, user_id, databases=places_of(urls), unread=databases.unread)
    events = [
        event for service in (order, balance, coupon, payment) for event in service.events(records)
    ]
    events.sort(key=lambda event: event.time)
    shown = events[-newest:]
    of_user = subject.kind == "user"
    return Answer(
        subject,
        list(standing.now_lines(records, open_only=of_user)),
        list(standing.next_lines(records, whole=not of_user)),
        shown,
        len(events) - len(shown),
        records.cut,
        places_of(urls),
        databases.unread,
    )


async def _read(databases: Databases, selection: Selection, records: Records) -> None:
    """Add the rows of the selection: orders first, whose sagas name those of other services."""
    of_this = Records()
    await databases.read("order", lambda one: order.read(one, selection, of_this), None)
    if not selection.newest:
        orders = {*selection.order_ids, *(row["order_id"] for row in of_this.orders)}
        requests = {*selection.request_ids, *step_requests(of_this.sagas)}
        selection = replace(
            selection, order_ids=tuple(sorted(orders)), request_ids=tuple(sorted(requests))
        )
    await databases.read("balance", lambda one: balance.read(one, selection, of_this), None)
    await databases.read("coupon", lambda one: coupon.read(one, selection, of_this), None)
    await databases.read("payment", lambda one: payment.read(one, selection, of_this), None)
    records.add(of_this)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("deploy.why", _USAGE)
    add = parser.add_argument
    add(
        "id",
        metavar="ID",
        help="an order_id, saga_id, payment_id, coupon_id, payment_key, user_id, request_id, or"
        " trace id",
    )
    add("--user", default="", help="take the id as a request_id of this user: the search is quick")
    add(
        "--newest",
        type=int,
        default=NEWEST,
        help="how many events are shown at most; of a user also how many orders, payments and so"
        " on (default: %(default)s)",
    )
    add("--json", action="store_true", help="write the answer as JSON")
    return parser


if __name__ == "__main__":
    run_command(_parser(), why, sys.argv[1:])
