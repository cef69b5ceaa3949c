"""The names in Redis of a lock's owner, queue and fence."""

from __future__ import annotations

import pytest

from common.locking.key_scripts import has_slot, redis_keys
from common.locking.redis import slot_of

KEYS = [
    *("a", "{a}", "a:queue", "{a}:queue", "{a}:fence", "queue", "{queue}", "{queue}a", "{fence}"),
    *("{a}a", "a{a}", "aa", "{aa}", "seat:{7}:A1", "seat:{7}:A1:queue", "{7}seat::A1", "7"),
]
"""Each looks like a part or a name of another."""


def test_no_two_locks_share_a_name() -> None:
    assert all(map(has_slot, KEYS))
    names = redis_keys(tuple(KEYS))
    assert len(set(names)) == len(names) == 3 * len(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_all_names_of_a_lock_are_in_its_slot(key: str) -> None:
    assert {slot_of(name) for name in redis_keys((key,))} == {slot_of(key)}


@pytest.mark.parametrize("key", KEYS)
def test_a_queue_or_fence_is_no_key_of_a_lock(key: str) -> None:
    owner, queue, fence = redis_keys((key,))
    assert owner == key
    assert not has_slot(queue)
    assert not has_slot(fence)
