"""Planted bugs of the key locks."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_LOCKS: Final = "tests/integration/locking/test_key_locks.py::"
_BUGS: Final = "tests/integration/locking/test_known_bugs.py::"
_CANCELLATION: Final = "tests/integration/locking/test_lock_cancellation.py::"
_CONNECTIONS: Final = "tests/integration/locking/test_lock_connections.py::"
_REDLOCK: Final = "tests/integration/locking/test_redlock.py::"

LOCKS: Final = (
    Mutant(
        "fence-without-the-clock",
        "a lock's fence begins at 1 again after a flush",
        file="common/locking/key_scripts.py",
        old="math.floor(fence / 1000)\n",
        new="math.floor(fence / 1000)\n  fence = 1\n",
        tests=(f"{_LOCKS}test_fences_rise_through_a_flush_and_a_clock_set_back",),
    ),
    Mutant(
        "renewal-creates-the-lock",
        "a renewal takes a lock that was lost",
        file="common/locking/key_scripts.py",
        old="  if redis.call('GET', key) == ARGV[2] then\n    redis",
        new="  if redis.call('SET', key, ARGV[2]) then\n    redis",
        tests=(f"{_LOCKS}test_a_lost_lock_cancels_the_holder_that_asks_for_it",),
    ),
    Mutant(
        "waiter-holds-a-part",
        "a waiter for several keys keeps the one that was handed over while another is busy",
        file="common/locking/key_scripts.py",
        old="if redis.call('GET', KEYS[j]) == id and not hand_over(j) then",
        new="if false then",
        tests=(f"{_LOCKS}test_of_several_keys_a_waiter_keeps_none_that_was_handed_over",),
    ),
    Mutant(
        "dead-waiter-kept",
        "a lock is handed to a waiter whose process is gone",
        file="common/locking/key_scripts.py",
        old="message) > 0 then",
        new="message) >= 0 then",
        tests=(f"{_BUGS}test_a_waiter_that_was_killed_is_passed_over",),
    ),
    Mutant(
        "turns-without-a-limit",
        "a process passes a lock on to its own callers while others wait",
        file="common/locking/key_line.py",
        old="while turn < TURNS_MAX and not lease.lost",
        new="while not lease.lost",
        tests=(f"{_LOCKS}test_a_replica_passes_the_key_on_after_eight_turns",),
    ),
    Mutant(
        "grant-to-a-cancelled-caller",
        "a caller that is cancelled at the moment of its grant keeps the lock",
        file="common/locking/key_locks.py",
        old="                caller.result().end()\n",
        new="                pass\n",
        tests=(f"{_CANCELLATION}test_cancelled_at_the_moment_of_the_grant",),
    ),
    Mutant(
        "any-reply-grants",
        "the reply to another command counts as a grant",
        file="common/locking/key_commands.py",
        old="    if replied != command or fence < 0",
        new="    if fence < 0",
        tests=(f"{_CONNECTIONS}test_a_doubled_reply_is_no_grant",),
    ),
    Mutant(
        "renewal-after-the-release",
        "a renewal that is under way reaches Redis after the release",
        file="common/locking/key_lease.py",
        old="            await self._keeping\n",
        new="",
        tests=(f"{_BUGS}test_a_renewal_in_flight_does_not_follow_the_release",),
    ),
    Mutant(
        "minority-left-locked",
        "a Redlock that is refused stays on the nodes that granted it",
        file="common/locking/redlock.py",
        old="            await self._all(lambda node: node.free(keys, number))\n",
        new="",
        tests=(f"{_REDLOCK}test_a_loser_rolls_back_on_all_nodes",),
    ),
)
