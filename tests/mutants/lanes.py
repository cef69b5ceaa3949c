"""Planted bugs of lanes: waits for locks, writes in one statement, deductions in shared calls."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_LANE_LOCKS: Final = "tests/integration/common/test_lane_locks.py::"
_REDIS: Final = "tests/integration/common/test_redis_locks.py::"
_TOPOLOGIES: Final = "tests/integration/locking/test_topologies.py::"
_ROWS: Final = "tests/integration/common/test_row_locks.py::"
_WRITES: Final = "tests/integration/common/test_writes.py::"
_SAVE: Final = "tests/integration/balance/test_save_locked.py::"
_BATCHES: Final = "tests/integration/order/test_saga_batches.py::"
_DEDUCTIONS: Final = "tests/integration/order/test_shared_deductions.py::"

LANES: Final = (
    Mutant(
        "names-on-any-value",
        "a process appends its name to whatever is stored under a busy key",
        file="common/locking/lane_scripts.py",
        old="  if type(value) == 'string' and string.sub(value, 1, {len(MARK)}) == '{MARK}'\n",
        new="  if type(value) == 'string'\n",
        tests=(f"{_REDIS}test_a_text_that_is_no_lock_of_this_release_is_busy_and_kept",),
    ),
    Mutant(
        "append-ends-the-script",
        "a user that may not append gets no lock when a key is busy",
        file="common/locking/lane_scripts.py",
        old="    redis.pcall('APPEND', ",
        new="    redis.call('APPEND', ",
        tests=(f"{_REDIS}test_a_user_that_may_not_append_still_gets_the_free_locks",),
    ),
    Mutant(
        "busy-by-its-own-token",
        "in a cluster, a key that several commands of a batch want is busy for all but the first",
        file="common/locking/lane_scripts.py",
        old="  if owned[key] or redis.call('SET', ",
        new="  if redis.call('SET', ",
        tests=(f"{_TOPOLOGIES}test_in_a_cluster_keys_of_all_nodes_are_locked",),
    ),
    Mutant(
        "reconnect-before-the-reply-missed",
        "a subscription that is back before the reply to the acquire is forgotten",
        file="common/locking/redis_lock.py",
        old="        missed = self._woken != woken\n",
        new="        missed = False\n",
        tests=(f"{_REDIS}test_a_subscription_that_is_back_before_the_reply_wakes_too",),
    ),
    Mutant(
        "every-command-asks",
        "each command of a busy key asks Redis, although others wait for that key",
        file="common/batching/key_waits.py",
        old="if key is not None and self._may_wait(entry):",
        new="if key is not None and not self._may_wait(entry):",
        tests=(f"{_LANE_LOCKS}test_later_commands_of_a_busy_lock_wait_without_asking",),
    ),
    Mutant(
        "busy-command-decided-at-once",
        "a command of a busy key does not wait for it",
        file="common/batching/key_waits.py",
        old="if found is None or not self._may_wait(entry):",
        new="if found is None or self._may_wait(entry):",
        tests=(f"{_LANE_LOCKS}test_a_busy_redis_lock_delays_a_command_and_refuses_none",),
    ),
    Mutant(
        "too-few-rows-accepted",
        "a write in one statement with others may change too few rows",
        file="common/db/writes.py",
        old="            raise one.lost\n",
        new="            pass\n",
        tests=(
            f"{_WRITES}test_a_write_that_changes_too_few_rows_leaves_nothing_of_the_others",
            f"{_SAVE}test_an_account_of_another_version_leaves_nothing_of_the_batch",
        ),
    ),
    Mutant(
        "older-records-than-rows",
        "records are read with the rows although a row has changed before it was locked",
        file="common/db/row_locks.py",
        old="bool(rows) and all(row.unchanged for row in rows)",
        new="bool(rows)",
        tests=(f"{_ROWS}test_records_are_read_again_if_a_row_changed_before_it_was_locked[True]",),
    ),
    Mutant(
        "balance-written-without-its-number-of-rows",
        "a locked account of another version is left out, and its entry is added",
        file="balance_service/store/account.py",
        old="arrays(_changed, rows), len(rows))]",
        new="arrays(_changed, rows), None)]",
        tests=(f"{_SAVE}test_an_account_of_another_version_leaves_nothing_of_the_batch",),
    ),
    Mutant(
        "order-moved-without-its-saga",
        "an order is moved although the end of its saga was not written",
        file="order_service/store/journal.py",
        old="arrays(_written, rows), len(rows))]",
        new="arrays(_written, rows), None)]",
        tests=(f"{_BATCHES}test_an_order_is_not_moved_without_the_end_of_its_saga",),
    ),
    Mutant(
        "refused-shared-call-without-a-pause",
        "all deductions of a shared call that is refused for now are called at once",
        file="order_service/balance_client.py",
        old="            if is_retryable(refusal):\n",
        new="            if not refusal.reason and is_retryable(refusal):\n",
        tests=(f"{_DEDUCTIONS}test_after_a_shared_call_that_fails_each_is_called_by_itself",),
    ),
    Mutant(
        "undecided-items-go-on-sharing",
        "deductions are shared on after a call that left some undecided",
        file="order_service/balance_client.py",
        old="            if _Alone.ALONE in replies:\n                self._stop_sharing()\n",
        new="",
        tests=(
            f"{_DEDUCTIONS}test_a_deduction_that_a_shared_call_left_undecided_is_called_at_once",
        ),
    ),
)
