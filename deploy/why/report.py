"""The answer, as text of 100 columns and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from common.ids import is_id
from deploy.audit.databases import places_in_words
from deploy.why.event import Event, clock, short
from deploy.why.subject import Subject, Unknown

COLUMNS: Final = 100
_LABEL: Final = 8
_SERVICE: Final = 7
_WHAT: Final = 40
_AMOUNT: Final = 15
_TOO_LONG: Final = "the search took too long; give --user"
_AMOUNT_FROM: Final = 12 + 2 + _SERVICE + 2


@dataclass(frozen=True, slots=True)
class Answer:
    """All that is said about one id."""

    subject: Subject
    now: list[tuple[str, str]]
    next: list[str]
    events: list[Event]
    """In order of time."""
    left_out: int
    """Older events that are not in ``events``."""
    cut: list[str]
    """Kinds of rows of which the user has more than were read."""
    databases: Mapping[str, str]
    """By service, the place of the database that was read, without user and password."""
    unread: Mapping[str, str]
    """By service, why its database could not be read."""


def as_text(answer: Answer) -> str:
    """The answer for a reader."""
    return "".join(f"{line}\n" for line in _lines(answer))


def as_json(answer: Answer) -> str:
    """The answer for a program: every id whole."""
    subject = answer.subject
    document = {
        "kind": subject.kind,
        "id": subject.id,
        "uses": list(subject.uses),
        "now": [{"what": label, "text": text} for label, text in answer.now],
        "next": answer.next,
        "events": [asdict(event) | {"time": event.time.isoformat()} for event in answer.events],
        "left_out": answer.left_out,
        "more": answer.cut,
        "unread": dict.fromkeys(subject.unread, _TOO_LONG) | dict(answer.unread),
        "databases": dict(answer.databases),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def unknown_as_text(unknown: Unknown) -> str:
    """Where an id was looked for."""
    known = "was not found in what could be read" if unknown.unread else "is unknown"
    lines = [f"{unknown.id} {known}. Looked for:"]
    lines += [f"  - {place}" for place in unknown.looked]
    for reason in unknown.unread.values():
        lines += textwrap.wrap(f"NOT read: {reason}", COLUMNS)
    read = {name: one for name, one in unknown.databases.items() if name not in unknown.unread}
    lines += textwrap.wrap(f"Read: {places_in_words(read)}.", COLUMNS)
    lines += [part for hint in unknown.hints for part in textwrap.wrap(hint, COLUMNS)]
    return "".join(f"{line}\n" for line in lines)


def unknown_as_json(unknown: Unknown) -> str:
    return json.dumps({"kind": "unknown", **asdict(unknown)}, indent=2, ensure_ascii=False) + "\n"


def _lines(answer: Answer) -> Iterator[str]:
    subject = answer.subject
    yield f"{subject.kind} {subject.id}"
    for use in subject.uses:
        yield from _labelled("used by", use)
    last = ""
    for label, text in answer.now:
        yield from _labelled("" if label == last else label, text)
        last = label or last
    for number, text in enumerate(answer.next or [_nothing(answer)]):
        yield from _labelled("" if number else "next", text)
    if subject.unread:
        yield from _labelled("unread", f"{', '.join(subject.unread)}: {_TOO_LONG}")
    for reason in answer.unread.values():
        yield from _labelled("unread", reason)
    read = {name: one for name, one in answer.databases.items() if name not in answer.unread}
    yield from _labelled("read", places_in_words(read))
    yield ""
    yield from _timeline(answer)
    ids = sorted({id_ for event in answer.events for id_ in _own_ids(event)})
    if ids:
        yield ""
        for name, id_ in ids:
            yield f"{short(id_)}  {name:<13} {id_}"


def _nothing(answer: Answer) -> str:
    if answer.unread:
        return "nothing is stuck in what could be read"
    return "nothing: nothing is stuck"


def _timeline(answer: Answer) -> Iterator[str]:
    if answer.left_out or answer.cut:
        more = f" (more {', '.join(answer.cut)})" if answer.cut else ""
        yield f"The newest {len(answer.events):,} events{more}; --newest N shows more."
    day = ""
    for event in answer.events:
        if (of_day := f"{event.time:%Y-%m-%d}") != day:
            day = of_day
            yield f"{f'{day} (UTC)':<{_AMOUNT_FROM + _WHAT}}  {'minor units':>{_AMOUNT}}  from → to"
        yield from _event(event)


def _event(event: Event) -> Iterator[str]:
    what, *more = textwrap.wrap(event.what, _WHAT) or [""]
    head = f"{clock(event.time)}  {event.service:<{_SERVICE}}  {what:<{_WHAT}}"
    line = f"{head}  {event.amount:>{_AMOUNT}}  {event.change}".rstrip()
    if len(line) <= COLUMNS:
        yield line
    else:
        # Two balances of many digits.
        yield f"{head}  {event.amount:>{_AMOUNT}}"
        yield f"{event.change:>{COLUMNS}}"
    for part in more:
        yield " " * (_AMOUNT_FROM + 2) + part


def _labelled(label: str, text: str) -> Iterator[str]:
    for number, part in enumerate(textwrap.wrap(text, COLUMNS - _LABEL - 2) or [""]):
        yield f"  {'' if number else label:<{_LABEL}}{part}".rstrip()


def _own_ids(event: Event) -> Iterator[tuple[str, str]]:
    """The ids that a timeline shows by their ends."""
    for name, id_ in event.ids.items():
        if is_id(id_) and short(id_) in event.what:
            yield name, id_
