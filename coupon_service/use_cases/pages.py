"""Lists that are sorted by time and id, newest first: where a page begins and the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from common.errors import InvalidPageToken
from common.ids import is_id
from common.paging import Page

T = TypeVar("T")

Place = tuple[datetime, str]
"""A row's place in its list: its time and its id."""

KEY: Final = (int, str)
"""The types of a place in a token: microseconds since 1970, and the id."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def place_before(page: Page) -> Place | None:
    """The place after which the page goes on. Raises InvalidPageToken for one nobody gave out."""
    if page.after is None:
        return None
    microseconds, id_ = page.after
    try:
        time = _EPOCH + timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise InvalidPageToken from None
    if not is_id(str(id_)):
        raise InvalidPageToken
    return time, str(id_)


def cut(page: Page, found: Sequence[T], place: Callable[[T], Place]) -> tuple[list[T], str]:
    """Of one row more than the page holds: its rows, and the next page's token ('' at the end)."""
    if len(found) <= page.size:
        return list(found), ""
    time, id_ = place(found[page.size - 1])
    return list(found[: page.size]), page.token([(time - _EPOCH) // _MICROSECOND, id_])
