"""Lists in pages, by keyset: a page begins after the last row of the page before it.

A page is limited in rows and in bytes.

A token holds the position of a row and the filters of the list; nothing in it is secret, and
nothing is trusted.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from common.errors import InvalidPageToken
from common.ids import is_id


class Message(Protocol):
    """A message of a response."""

    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


T = TypeVar("T")
M = TypeVar("M", bound=Message)

SIZE_DEFAULT: Final = 50
SIZE_MAX: Final = 500
BYTES_MAX: Final = 1024 * 1024
"""A page ends before the messages in it have more bytes: by default gRPC clients accept 4 MiB."""
_FRAME_BYTES: Final = 6
"""At most, of a message's tag and length in its response."""
_TOKEN_MAX: Final = 1_000

Key = Sequence[str | int]
TIME_KEY: Final = (int, str)
"""The types of ``TimePosition.key``, for ``Page.of``."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: at most ``size`` rows that follow ``after``."""

    size: int
    after: tuple[str | int, ...] | None
    filters: tuple[str, ...]

    @classmethod
    def of(
        cls,
        page_size: int | None,
        page_token: str,
        *,
        filters: Sequence[str],
        key: Sequence[type] = TIME_KEY,
    ) -> Page:
        """The page that a request's page fields describe.

        ``filters``: what else selects the rows; a token is valid for the same filters only.
        ``key``: the types of the columns that sort the list. Raises InvalidPageToken.
        """
        size = min(page_size or SIZE_DEFAULT, SIZE_MAX)
        after = _decode(page_token, filters, key) if page_token else None
        page = cls(size, after, tuple(filters))
        if key == TIME_KEY:
            # A forged token is refused here, before a list takes a connection for it.
            time_position(page)
        return page

    def token(self, last: Key) -> str:
        """The token of the page that follows a row at this position."""
        text = json.dumps([list(self.filters), list(last)], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """The rows found for a page: at most one more than it holds."""

    page: Page
    rows: Sequence[T]
    key: Callable[[T], Key]
    """A row's position in the list."""

    def messages(self, message_of: Callable[[T], M]) -> tuple[list[M], str]:
        """The page's rows as messages, and the next page's token, '' at the end.

        The page ends early, but not without a row, before it has more than BYTES_MAX bytes.
        """
        messages: list[M] = []
        size_bytes = 0
        for row in self.rows[: self.page.size]:
            message = message_of(row)
            size_bytes += message.ByteSize() + _FRAME_BYTES
            if messages and size_bytes > BYTES_MAX:
                break
            messages.append(message)
        if len(messages) == len(self.rows):
            return messages, ""
        return messages, self.page.token(self.key(self.rows[len(messages) - 1]))


# -- lists sorted by creation time and id, newest first -------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class TimePosition(NamedTuple):
    """A row's position in a list that is sorted by time and id."""

    time: datetime
    id: str

    @property
    def key(self) -> Key:
        """The position in a page token: microseconds since 1970, and the id."""
        return (self.time - _EPOCH) // _MICROSECOND, self.id


_FIRST: Final = TimePosition(
    datetime.max.replace(tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff"
)


def time_position(page: Page) -> TimePosition:
    """The position that the page's rows come after. Raises InvalidPageToken for a forged token."""
    if page.after is None:
        return _FIRST
    microseconds, id_ = page.after
    if not is_id(str(id_)):
        raise InvalidPageToken
    try:
        return TimePosition(_EPOCH + int(microseconds) * _MICROSECOND, str(id_))
    except OverflowError:
        raise InvalidPageToken from None


def _decode(token: str, filters: Sequence[str], key: Sequence[type]) -> tuple[str | int, ...]:
    if len(token) > _TOKEN_MAX:
        raise InvalidPageToken
    try:
        padded = token + "=" * (-len(token) % 4)
        given, last = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError):
        raise InvalidPageToken from None
    well_formed = (
        given == list(filters)
        and isinstance(last, list)
        and [type(part) for part in last] == list(key)
        and all(abs(part) < 2**63 for part in last if isinstance(part, int))
        and not any("\x00" in part for part in last if isinstance(part, str))
    )
    if not well_formed:
        raise InvalidPageToken
    return tuple(last)
