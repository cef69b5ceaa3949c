"""Lists in pages, by keyset: a page begins after the last row of the one before.

A token says where to go on and for which filters; it holds nothing secret and nothing trusted.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import InvalidPageToken

SIZE_DEFAULT: Final = 50
SIZE_MAX: Final = 500
_TOKEN_MAX: Final = 1_000

Key = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Page:
    """What one page is asked for: at most ``size`` rows that follow ``after``."""

    size: int
    after: tuple[str | int, ...] | None
    filters: tuple[str, ...]

    @classmethod
    def of(
        cls, page_size: int | None, page_token: str, *, filters: Sequence[str], key: Sequence[type]
    ) -> Page:
        """Read a request's page fields.

        ``filters``: what else selects the rows; a token is good for these only. ``key``: the types
        of the columns the list is sorted by. Raises InvalidPageToken.
        """
        size = min(page_size or SIZE_DEFAULT, SIZE_MAX)
        after = _decode(page_token, filters, key) if page_token else None
        return cls(size, after, tuple(filters))

    def token(self, last: Key) -> str:
        """The token of the page that follows the row whose key is ``last``."""
        text = json.dumps([list(self.filters), list(last)], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


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
