"""Pages of lists that are sorted by time and id."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidPageToken
from common.ids import new_id
from common.paging import TIME_KEY, Key, Page, TimePosition, time_position

times = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))  # noqa: DTZ001
positions = times.map(lambda time: TimePosition(time, new_id()))


@given(st.lists(positions, min_size=1, max_size=9), st.integers(1, 9))
def test_next_page_begins_after_the_last_row(rows: list[TimePosition], size: int) -> None:
    page = Page.of(size, "", filters=["list"], key=TIME_KEY)
    shown, token = page.cut(rows, lambda row: row.key)
    assert shown == rows[:size]
    if len(rows) <= size:
        assert token == ""
    else:
        following = Page.of(size, token, filters=["list"], key=TIME_KEY)
        assert time_position(following) == rows[size - 1]


@pytest.mark.parametrize("key", [[2**62, new_id()], [-(2**62), new_id()], [0, "x"], [0, ""]])
def test_position_of_no_row_is_refused(key: Key) -> None:
    _, token = Page(1, None, ("list",)).cut([0, 1], lambda _: key)
    with pytest.raises(InvalidPageToken):
        time_position(Page.of(1, token, filters=["list"], key=TIME_KEY))
