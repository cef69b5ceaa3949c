"""Planted bugs of common: lanes, row locks, idempotency, Redis locks and marks, the gRPC server."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_CLIENTS: Final = "tests/integration/common/test_clients.py::"
_LANE: Final = "tests/integration/common/test_lane.py::"
_LANE_LOCKS: Final = "tests/integration/common/test_lane_locks.py::"
_LOADER: Final = "tests/integration/common/test_loader.py::"
_READS: Final = "tests/integration/services/test_reads.py::"
_ROWS: Final = "tests/integration/common/test_row_locks.py::"
_RECORDS: Final = "tests/integration/common/test_idempotency.py::"
_REDIS: Final = "tests/integration/common/test_redis_locks.py::"
_REPLIES: Final = "tests/integration/common/test_redis_replies.py::"
_BALANCE: Final = "tests/integration/balance/test_balance.py::"
_BAD_INPUT: Final = "tests/integration/contract/test_bad_input.py::"
_CAMPAIGNS: Final = "tests/integration/coupon/test_campaigns.py::"
_CONFLICTS: Final = "tests/integration/contract/test_conflicts.py::"
_MARKS: Final = "tests/integration/common/test_marks.py::"
_SESSIONS: Final = "tests/integration/common/test_sessions.py::"
_SERVER: Final = "tests/integration/common/test_server.py::"
_STANDBY: Final = "tests/integration/standby/test_standby_away.py::"
_TRANSACTIONS: Final = "tests/integration/common/test_transactions.py::"
_HANDLERS: Final = "tests/integration/common/test_handlers.py::"

COMMON: Final = (
    Mutant(
        "reply-before-commit",
        "a lane replies while the batch's transaction is not committed yet",
        file="common/batching/batch.py",
        old="            async with self.database.transactions.begin(pool) as connection:\n",
        new="""            import contextlib

            @contextlib.asynccontextmanager
            async def committed_later():
                opened = pool.connect()
                connection = await opened.__aenter__()
                connection.begin()
                yield connection

                async def commit():
                    await asyncio.sleep(0.01)
                    await connection.commit()
                    await opened.__aexit__(None, None, None)

                globals().setdefault("_commits", []).append(asyncio.create_task(commit()))

            async with committed_later() as connection:
""",
        tests=(f"{_LANE}test_a_reply_comes_after_the_commit",),
    ),
    Mutant(
        "unlock-before-commit",
        "a lane frees its Redis locks before the batch is committed",
        file="common/batching/lane.py",
        old="""        certain = True
        if entries:
            certain""",
        new="""        certain = True
        if grant is not None:
            await self._locks.release(grant)
        if entries:
            certain""",
        tests=(f"{_LANE_LOCKS}test_redis_locks_are_freed_after_the_commit",),
    ),
    Mutant(
        "unlock-of-an-unknown-commit",
        "a lane frees its Redis locks although nobody knows whether the batch was committed",
        file="common/batching/lane.py",
        old="if grant is not None and certain:",
        new="if grant is not None:",
        tests=(f"{_LANE_LOCKS}test_redis_locks_of_an_unknown_commit_are_left_to_expire",),
    ),
    Mutant(
        "unlock-of-another-owner",
        "a Redis lock is freed whoever holds it",
        file="common/locking/lane_scripts.py",
        old="  if value == ARGV[1] then\n",
        new="  if value then\n",
        tests=(f"{_REDIS}test_only_the_owner_frees_a_lock",),
    ),
    Mutant(
        "unlock-wakes-nobody",
        "the release of a Redis lock does not wake those who wait for it",
        file="common/locking/lane_scripts.py",
        old="      redis.pcall('PUBLISH', ",
        new="      redis.pcall('ECHO', ",
        tests=(f"{_REDIS}test_a_release_wakes_every_process_that_waits",),
    ),
    Mutant(
        "busy-command-holds-keys",
        "a command that waits for one of its Redis locks keeps the others",
        file="common/locking/lane_scripts.py",
        old="      redis.call('DEL', key)\n      owned[key] = nil\n",
        new="",
        tests=(f"{_REDIS}test_a_command_owns_all_of_its_keys_or_none",),
    ),
    Mutant(
        "release-message-missed",
        "a release that is heard before the reply to the acquire is forgotten",
        file="common/locking/redis_lock.py",
        old="        if freed:\n            busy.freed.set()\n",
        new="",
        tests=(f"{_REDIS}test_a_release_before_the_reply_is_read_is_not_missed",),
    ),
    Mutant(
        "one-bad-command-fails-all",
        "a command that breaks a constraint fails its whole batch",
        file="common/batching/batch.py",
        old="            if divisible and len(entries) > 1:\n                return None\n",
        new="",
        tests=(f"{_LANE}test_one_bad_command_fails_alone",),
    ),
    Mutant(
        "no-retry-after-a-lost-connection",
        "a batch is not run again after its connection was lost",
        file="common/batching/batch.py",
        old="Fault.CONNECTION: 3,",
        new="Fault.CONNECTION: 1,",
        tests=(f"{_LANE}test_a_batch_is_run_again_after_a_lost_connection",),
    ),
    Mutant(
        "callers-who-left-do-not-count",
        "a caller that gives up frees its place in the queue at once",
        file="common/batching/lane.py",
        old="        return await reply\n",
        new="""        try:
            return await reply
        except asyncio.CancelledError:
            self._leave(entry)
            raise
""",
        tests=(f"{_LANE}test_callers_who_left_count_towards_the_depth",),
    ),
    Mutant(
        "unsorted-row-locks",
        "rows are locked in the order in which the plan finds them",
        file="common/db/row_locks.py",
        old="        selected.order_by(*order_by)\n        .with_for_update",
        new="        selected.order_by(*(column.desc() for column in order_by))\n"
        "        .with_for_update",
        tests=(f"{_ROWS}test_rows_are_locked_in_ascending_order",),
    ),
    Mutant(
        "locked-rows-not-reported",
        "a row that another transaction has locked looks as if it did not exist",
        file="common/db/row_locks.py",
        old="return replace(locked, blocked=frozenset(existing.found) - locked.found.keys())",
        new="return locked",
        tests=(f"{_ROWS}test_rows_locked_by_another_are_reported",),
    ),
    Mutant(
        "keys-joined-by-equality",
        "while a table is known to have a few rows, its statements are planned to read it whole",
        file="common/db/unnest.py",
        old="return column == sa.any_(postgresql.array([value]))",
        new="return column == value",
        tests=("tests/integration/services/test_plans.py",),
    ),
    Mutant(
        "plans-kept",
        "a session keeps its plans for as long as it lives, however its tables grow",
        file="common/db/pool.py",
        old="old_plans = now - session.planned_s > PLANS_S",
        new="old_plans = False",
        tests=("tests/integration/services/test_plans.py",),
    ),
    Mutant(
        "clock-before-the-lock",
        "the batch's time is that of the transaction's begin, before it waited for a row",
        file="common/db/row_locks.py",
        old='return sa.select(cte, CLOCK.label("now"), ',
        new='return sa.select(cte, sa.func.transaction_timestamp(type_=TIME).label("now"), ',
        tests=(f"{_ROWS}test_the_clock_is_read_after_the_wait",),
    ),
    Mutant(
        "no-idempotency-check",
        "the record of an earlier call is not replayed",
        file="common/db/idempotency.py",
        old="        if record is None:\n            return None\n        return Result(body",
        new="        if record is None or record.state == ANSWERED:\n"
        "            return None\n        return Result(body",
        tests=(
            f"{_BALANCE}test_a_repeated_request_is_replayed_and_has_one_effect",
            f"{_CAMPAIGNS}test_campaign_is_created_once_and_read_back",
        ),
    ),
    Mutant(
        "content-not-compared",
        "a request_id with other content gets the first response",
        file="common/db/idempotency.py",
        old="if self.digest != command.digest:",
        new="if self.digest != command.digest and self.body is None:",
        tests=(f"{_CONFLICTS}test_request_id_with_other_content_is_refused[ChargeBalance]",),
    ),
    Mutant(
        "tombstone-over-anything",
        "a tombstone replaces a record that its transaction has not read",
        file="common/db/idempotency.py",
        old="inserting.excluded.state == CANCELLED, inserting.excluded.digest == table.c.digest\n",
        new="inserting.excluded.state == CANCELLED\n",
        tests=(f"{_RECORDS}test_a_tombstone_replaces_only_the_record_that_was_read",),
    ),
    Mutant(
        "tombstones-cleaned-up",
        "tombstones are deleted after 30 days as other records are",
        file="common/db/idempotency.py",
        old="""        .where(table.c.state != sa.literal_column(f"'{CANCELLED}'"))\n""",
        new="",
        tests=(f"{_RECORDS}test_old_records_are_cleaned_up_in_batches_and_tombstones_stay",),
    ),
    Mutant(
        "replay-without-wait",
        "a batch that only replays commits without waiting for the standby",
        file="common/db/idempotency.py",
        old="            if records.replays:\n",
        new="            if records.replays and records.new:\n",
        tests=(f"{_STANDBY}test_no_write_is_confirmed_before_the_standby_has_it",),
    ),
    Mutant(
        "commit-with-time-limit",
        "COMMIT has the driver's time limit, which cancels its wait for the standby",
        file="common/db/statements.py",
        old='execute("COMMIT", timeout=float("inf"))',
        new='execute("COMMIT")',
        tests=(f"{_TRANSACTIONS}test_commit_has_no_time_limit_of_the_driver",),
    ),
    Mutant(
        "abandoned-commits-not-counted",
        "connections whose COMMIT waits do not count as taken",
        file="common/db/transactions.py",
        old="return pending >= pool.size",
        new="return pending > pool.size",
        tests=(f"{_TRANSACTIONS}test_without_a_connection_left_writes_are_refused_at_once",),
    ),
    Mutant(
        "second-record-ignored",
        "that another transaction recorded the request first is not noticed",
        file="common/db/idempotency.py",
        old="parameters, len(rows), lost=RecordConflict)",
        new="parameters, None, lost=RecordConflict)",
        tests=(f"{_RECORDS}test_the_second_to_record_a_request_writes_nothing",),
    ),
    Mutant(
        "mark-of-another-owner",
        "a mark in progress is cleared whoever has set it",
        file="common/locking/marks.py",
        old="""if redis.call('GET', KEYS[1]) == ARGV[1] then return""",
        new="""if redis.call('GET', KEYS[1]) then return""",
        tests=(f"{_MARKS}test_only_its_owner_clears_a_mark_in_progress",),
    ),
    Mutant(
        "demoted-server-kept",
        "a connection to a Redis that refuses every write is used again",
        file="common/locking/redis.py",
        old="            await self._disconnect()\n",
        new="            pass\n",
        tests=(f"{_REPLIES}test_after_a_wrong_reply_the_server_is_connected_anew",),
    ),
    Mutant(
        "currency-not-listed",
        "an account is opened in any three letters",
        file="common/currencies.py",
        old="if not is_listed(currency_code):",
        new="if not currency_code.isupper():",
        tests=(f"{_BAD_INPUT}test_nothing_is_opened_in_a_currency_that_is_not_listed",),
    ),
    Mutant(
        "late-calls-begin",
        "a call whose deadline is almost over begins its method",
        file="common/rpc/handlers.py",
        old="                elif left_s > LEAST_TIME_S:\n                    response",
        new="                elif left_s > 0:\n                    response",
        tests=(f"{_HANDLERS}test_a_call_with_too_little_time_is_refused_before_the_method_runs",),
    ),
    Mutant(
        "lost-session-not-replaced",
        "work outside a lane is not run again when its session was lost",
        file="common/db/repeat.py",
        old="if tries > 1 or not opened",
        new="if tries > 0 or not opened",
        tests=(f"{_SESSIONS}test_work_survives_the_loss_of_every_pooled_session",),
    ),
    Mutant(
        "announced-end-is-a-defect",
        "a session whose end the server has announced is taken for a defect of the command",
        file="common/db/errors.py",
        old="has no SQLSTATE.\n    InternalClientError,\n",
        new="has no SQLSTATE.\n",
        tests=(f"{_SESSIONS}test_work_survives_the_loss_of_every_pooled_session",),
    ),
    Mutant(
        "forgotten-statements-are-a-defect",
        "a session that has lost its prepared statements is used again",
        file="common/db/errors.py",
        old='    "26000",\n',
        new="",
        tests=(f"{_SESSIONS}test_work_survives_the_loss_of_every_pooled_session",),
    ),
    Mutant(
        "unreadable-response-is-success",
        "a response that cannot be read counts as the reply of a call that succeeded",
        file="common/rpc/client.py",
        old="    if response is None:\n",
        new="    if False:\n",
        tests=(f"{_CLIENTS}test_a_response_that_cannot_be_read_is_no_reply",),
    ),
    Mutant(
        "repeat-of-an-unknown-commit",
        "a transaction is run again although its COMMIT may have succeeded",
        file="common/db/repeat.py",
        old=" or uncertain",
        new="",
        tests=(f"{_SESSIONS}test_a_loss_at_commit_is_repeated_only_where_that_is_idempotent",),
    ),
    Mutant(
        "suspect-sessions-used",
        "the other sessions of a pool are used although one of them has just broken",
        file="common/db/pool.py",
        old="        self._lost_s = max(self._lost_s, time.monotonic())\n"
        "        session.terminate()\n",
        new="        session.terminate()\n",
        tests=(f"{_SESSIONS}test_work_survives_the_loss_of_every_pooled_session",),
    ),
    Mutant(
        "a-look-up-for-each-session",
        "each session that is opened looks the name up by itself",
        file="common/db/connections.py",
        old="        if task is None:\n            loop",
        new="        if task is None or task:\n            loop",
        tests=(f"{_SESSIONS}test_a_silent_name_server_holds_one_thread_and_heals",),
    ),
    Mutant(
        "out-after-one-failed-probe",
        "one failed readiness probe makes a replica NOT_SERVING",
        file="common/rpc/health.py",
        old="if self.ready and 0 < failed < FAILURES_MAX:",
        new="if False:",
        tests=(f"{_SERVER}test_only_several_failed_probes_in_a_row_take_a_replica_out",),
    ),
    Mutant(
        "join-a-sent-statement",
        "a read joins the statement that another call of its key has sent before",
        file="common/batching/loader.py",
        old="""        value: asyncio.Future[V] = asyncio.get_running_loop().create_future()
""",
        new="""        sent = self.__dict__.setdefault("sent", {})
        if key in sent and not sent[key].done():
            return await asyncio.shield(sent[key])
        value = sent[key] = asyncio.get_running_loop().create_future()
""",
        tests=(
            f"{_LOADER}test_a_read_sees_what_was_committed_before_it",
            f"{_READS}test_a_read_shows_what_was_committed_before_it",
        ),
    ),
    Mutant(
        "one-failing-key-fails-all",
        "a key whose statement fails lets the reads of all others in its batch fail",
        file="common/batching/loader.py",
        old="if len(keys) > 1 and not over and _may_be_of_one_key(error):",
        new="if False:",
        tests=(f"{_LOADER}test_a_key_that_fails_its_statement_fails_alone",),
    ),
    Mutant(
        "a-statement-per-key",
        "concurrent reads are loaded one by one",
        file="common/batching/loader.py",
        old="while self._queue and size < BATCH_MAX:",
        new="while self._queue and size < 1:",
        tests=(f"{_READS}test_concurrent_reads_share_a_statement",),
    ),
)
