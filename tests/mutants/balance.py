"""Planted bugs of the balance service."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_API: Final = "tests/integration/balance/test_balance.py::"
_AT_TIME: Final = "tests/integration/balance/test_at_time.py::"
_RACES: Final = "tests/concurrency/balance/test_accounts.py::"
_COUNTED: Final = "tests/integration/balance/test_charges_counted.py::"
_MODEL: Final = "tests/unit/balance/test_model.py::"
_STRATEGIES: Final = "tests/integration/services/test_strategies.py::"
_MIGRATIONS: Final = "tests/integration/balance/test_migrations.py::"

BALANCE: Final = (
    Mutant(
        "deduct-one-too-much",
        "a deduction may take one minor unit more than there is",
        file="balance_service/model.py",
        old="if amount > self.available_minor:",
        new="if amount > self.available_minor + 1:",
        tests=(
            f"{_API}test_a_deduction_takes_no_more_than_there_is",
            f"{_MODEL}TestAccountMachine",
        ),
    ),
    Mutant(
        "refund-without-tombstone",
        "a refund does not cancel the deduction's request_id",
        file="balance_service/use_cases.py",
        old="    records.cancel(command.deduct_key)\n",
        new="",
        tests=(f"{_API}test_a_deduction_refunded_beforehand_is_refused",),
    ),
    Mutant(
        "refund-twice",
        "a refund does not look for an earlier refund of the deduction",
        file="balance_service/use_cases.py",
        old="if refunded is not None or records.is_cancelled(command.deduct_key):",
        new="if refunded is not None and records.is_cancelled(command.key):",
        tests=(f"{_API}test_a_refund_puts_the_whole_deduction_back_once",),
    ),
    Mutant(
        "refund-in-part",
        "a refund puts one minor unit less back",
        file="balance_service/model.py",
        old="            -deduction.amount_minor,\n",
        new="            -deduction.amount_minor - 1,\n",
        tests=(
            f"{_API}test_a_refund_puts_the_whole_deduction_back_once",
            f"{_MODEL}TestAccountMachine",
        ),
    ),
    Mutant(
        "another-key-for-deductions",
        "deductions lock another Redis key than charges",
        file="balance_service/locking.py",
        old="""    DeductBalance: Strategy(
        redis_key=ACCOUNT_KEY,""",
        new="""    DeductBalance: Strategy(
        redis_key="balance:deduct:{user_id}",""",
        tests=(f"{_STRATEGIES}test_redis_keys_are_made_of_the_commands_attributes",),
    ),
    Mutant(
        "deduct-without-row-lock",
        "a deduction reads its account without the row lock",
        file="balance_service/use_cases.py",
        old="lock = wait_for_locks or any(needs_row_lock(command) for command in commands)",
        new="lock = wait_for_locks",
        tests=(
            f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[DeductBalance]",
        ),
    ),
    Mutant(
        "charge-without-version",
        "a charge is written although its account has changed since it was read",
        file="balance_service/store/account.py",
        old="    .where(accounts.c.version == _changed.c.loaded_version),\n",
        new="    .where(sa.true()),\n",
        tests=(
            f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[ChargeBalance]",
        ),
    ),
    Mutant(
        "charges-without-limit",
        "charges may add up to more than 64 bits hold",
        file="balance_service/model.py",
        old=" or self.charged_minor + amount > INT64_MAX:",
        new=":",
        tests=(
            f"{_MODEL}test_charges_that_were_not_counted_are_added_up_to_the_limit",
            f"{_COUNTED}test_a_charge_that_could_make_a_refund_too_large_is_refused",
        ),
    ),
    Mutant(
        "charges-counted-from-the-beginning",
        "charges that are counted already are counted again after a rollout",
        file="balance_service/store/account.py",
        old="            ledger_entries.c.sequence > _behind.c.charged_at_version,\n",
        new="",
        tests=(f"{_COUNTED}test_charges_of_a_replica_that_counts_none_are_counted",),
    ),
    Mutant(
        "backfill-over-newer-sums",
        "the migration sums only charges after the version that it writes",
        file="balance_service/migrations/0003_count_charges.py",
        old="AND entry.sequence > charged_at_version AND entry.sequence <= version",
        new="AND entry.sequence > version",
        tests=(f"{_MIGRATIONS}test_the_charges_of_existing_accounts_are_summed",),
    ),
    Mutant(
        "sequence-not-unique",
        "the ledger's sequence is not unique in the database",
        file="balance_service/migrations/0001_accounts_and_ledger.py",
        old="PRIMARY KEY (user_id, currency_code, sequence),",
        new="PRIMARY KEY (user_id, currency_code, sequence, entry_id),",
        tests=(
            f"{_RACES}test_two_charges_that_read_the_same_balance_both_count[no-redis-constraints]",
        ),
    ),
    Mutant(
        "balance-before-its-entry",
        "the entry of the very time that is asked about does not count",
        file="balance_service/store/past_account.py",
        old="_is_up_to_then = _at_middle.c.create_time <= _bisection.c.time",
        new="_is_up_to_then = _at_middle.c.create_time < _bisection.c.time",
        tests=(f"{_AT_TIME}test_the_last_entry_up_to_the_time_counts",),
    ),
    Mutant(
        "bisection-without-its-middle",
        "the search for the last entry up to a time leaves out an entry that it has compared",
        file="balance_service/store/past_account.py",
        old="else_=_at_middle.c.sequence - 1)",
        new="else_=_at_middle.c.sequence - 2)",
        tests=(f"{_AT_TIME}test_the_search_is_right_for_every_length_and_time",),
    ),
    Mutant(
        "balance-of-the-future",
        "a balance is returned as of a time that is not over",
        file="balance_service/model.py",
        old="if asked.time > self.present_time:",
        new="if False:",
        tests=(f"{_AT_TIME}test_a_time_in_the_future_is_refused",),
    ),
)
