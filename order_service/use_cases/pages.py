"""Lists by time of making, newest first: what products and orders have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from common.errors import InvalidPageToken
from common.ids import is_id
from common.paging import Page

KEY: Final = (int, str)
"""What a page token of these lists holds: microseconds since 1970, and an id."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST: Final = (
    datetime(9999, 12, 31, tzinfo=UTC),
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
)


def before(page: Page) -> tuple[datetime, str]:
    """Older than what the page begins. Raises InvalidPageToken for a token nobody gave out."""
    if page.after is None:
        return _NEWEST
    microseconds, id_ = page.after
    assert isinstance(microseconds, int)
    assert isinstance(id_, str)
    if not is_id(id_):
        raise InvalidPageToken
    try:
        return _EPOCH + timedelta(microseconds=microseconds), id_
    except OverflowError:
        raise InvalidPageToken from None


def last(create_time: datetime, id_: str) -> tuple[int, str]:
    """The key of a page's last row."""
    return (create_time - _EPOCH) // timedelta(microseconds=1), id_
