"""Planted bugs of the payment service and its gateway adapter."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_MODEL: Final = "tests/unit/payment/test_model.py::"
_FENCE: Final = "tests/integration/payment/test_fence.py::"
_OUTCOMES: Final = "tests/integration/payment/test_outcomes.py::"
_LEASES: Final = "tests/integration/payment/test_leases.py::"
_REPLIES: Final = "tests/unit/payment/test_toss_responses.py::"
_CANCEL: Final = "tests/integration/payment/test_cancel.py::"
_CONFIRM: Final = "tests/integration/payment/test_confirm.py::"
_RACES: Final = "tests/concurrency/test_payment.py::"
_EXCHANGE: Final = "tests/integration/gateway/test_exchange.py::"
_DUPLICATES: Final = "tests/integration/payment/test_duplicates.py::"

PAYMENT: Final = (
    Mutant(
        "payment-key-not-unique",
        "the database accepts two payments of one key",
        file="payment_service/migrations/0001_payments.py",
        old="CONSTRAINT payments_key_once UNIQUE (payment_key),",
        new="CONSTRAINT payments_key_once UNIQUE (payment_key, payment_id),",
        tests=(f"{_RACES}test_the_unique_key_alone_is_sufficient",),
    ),
    Mutant(
        "confirm-after-cancellation",
        "a confirm is sent for a payment that carries a cancellation",
        file="payment_service/model/confirmation.py",
        old="if not leased or not self.undecided or self.cancel_reason is not None:",
        new="if not leased or not self.undecided:",
        tests=(
            f"{_FENCE}test_a_first_confirm_that_has_not_begun_is_not_sent",
            f"{_FENCE}test_a_repeated_confirm_that_has_not_begun_is_not_sent",
        ),
    ),
    Mutant(
        "cancel-without-tombstone",
        "a cancellation does not prevent the confirmation that arrives after it",
        file="payment_service/use_cases/decider.py",
        old="# repeated, is refused.\n            records.cancel(command.confirm_key)\n",
        new="# repeated, is refused.\n            pass\n",
        tests=(f"{_CANCEL}test_a_cancellation_before_the_confirmation_prevents_it",),
    ),
    Mutant(
        "key-free-after-an-unknown-outcome",
        "a confirm without a reply frees its payment key",
        file="payment_service/model/outcome.py",
        old="if first_call and isinstance(command.outcome, Untouched):",
        new="if first_call and not isinstance(command.outcome, Confirmed | Declined | Cancelled):",
        tests=(
            f"{_MODEL}test_only_the_claims_own_first_call_frees_the_key",
            f"{_OUTCOMES}test_an_unknown_key_is_not_free",
        ),
    ),
    Mutant(
        "claim-of-a-dead-replica-freed",
        "the lease of a claim that may have been sent expires without a trace",
        file="payment_service/store/lease.py",
        old="state=sa.case((_pending, PaymentState.UNKNOWN.value), else_=payments.c.state),",
        new="state=payments.c.state,",
        tests=(f"{_OUTCOMES}test_a_claim_that_another_replica_acquired_is_not_freed",),
    ),
    Mutant(
        "amount-of-the-gateway-trusted",
        "the amount in a reply of the gateway is not compared",
        file="payment_service/gateway/toss_responses.py",
        old="return type(found) is int and found == expected_minor",
        new="return type(found) is int",
        tests=(f"{_REPLIES}test_each_reply_has_one_outcome_per_operation",),
    ),
    Mutant(
        "not-found-is-not-charged",
        "a key that the gateway does not know counts as never charged at once",
        file="payment_service/model/outcome.py",
        old="return cancelled and payment.confirm_time <= asked_before",
        new="return cancelled",
        tests=(
            f"{_FENCE}test_a_charge_that_arrives_after_the_cancellation_is_given_back",
            f"{_FENCE}test_a_cancelled_unknown_payment_ends_when_its_key_is_over",
        ),
    ),
    Mutant(
        "another-key-for-each-confirm",
        "a repeated confirm has another idempotency key at the gateway",
        file="payment_service/model/confirmation.py",
        old='idempotency_key=f"confirm:{payment.payment_id}",',
        new='idempotency_key=f"confirm:{payment.payment_id}:{self.tries}",',
        tests=(
            f"{_OUTCOMES}test_a_confirm_that_charged_nothing_is_sent_again",
            f"{_MODEL}test_each_try_of_a_refund_has_its_own_idempotency_key",
        ),
    ),
    Mutant(
        "refund-of-the-rest-twice",
        "each try at refunding a part has its own idempotency key at the gateway",
        file="payment_service/model/confirmation.py",
        old='part = self.tries if amount is None else f"rest-{amount.amount_minor}"',
        new="part = self.tries",
        tests=(f"{_MODEL}test_all_tries_at_refunding_a_part_have_one_idempotency_key",),
    ),
    Mutant(
        "lease-of-another-renewed",
        "a replica renews the lease of a payment that another has acquired",
        file="payment_service/store/lease.py",
        old="sa.select(payments.c.payment_id).join(_held, same(payments, _held)),",
        new='sa.select(payments.c.payment_id).join(_held, same(payments, _held, ["payment_id"])),',
        tests=(f"{_LEASES}test_a_lease_that_another_replica_acquired_is_not_renewed",),
    ),
    Mutant(
        "payment-of-other-content",
        "a repeated confirmation of other content gets the first one's result",
        file="payment_service/model/confirmation.py",
        old="if command.digest != self.digest:",
        new="if not command.digest:",
        tests=(f"{_CONFIRM}test_another_request_is_refused_while_the_key_is_in_progress",),
    ),
    Mutant(
        "gateway-slot-kept",
        "a call to the gateway that is cancelled keeps its slot",
        file="payment_service/gateway/exchange.py",
        old="""            yield until
        finally:
            self._slots.release()
""",
        new="""            yield until
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._slots.release()
            raise
        else:
            self._slots.release()
""",
        tests=(f"{_EXCHANGE}test_a_call_cancelled_at_any_await_keeps_no_slot",),
    ),
    Mutant(
        "own-saturation-trips-the-breaker",
        "a call that gets no slot counts as a failure of the gateway",
        file="payment_service/gateway/toss.py",
        old="async with self._exchanges.slot() as until, breaker.call():",
        new="async with breaker.call(), self._exchanges.slot() as until:",
        tests=(
            f"{_EXCHANGE}test_a_call_that_gets_no_slot_is_no_failure_of_the_gateway",
            f"{_EXCHANGE}test_a_trial_that_gets_no_slot_leaves_the_trial_to_the_next_call",
        ),
    ),
    Mutant(
        "duplicates-do-not-join",
        "each duplicate of a request takes its own turn at a transaction",
        file="payment_service/use_cases/joined.py",
        old="        running = self._running.get(same)\n",
        new="        running = self._running.get(same) if not same else None\n",
        tests=(f"{_DUPLICATES}test_duplicates_on_every_replica_join_and_get_the_outcome",),
    ),
    Mutant(
        "renewal-behind-sweeps",
        "slow sweeps keep the renewal of leases out of the database",
        file="payment_service/use_cases/resolver.py",
        old="            of_call=True,\n",
        new="",
        tests=(f"{_LEASES}test_leases_are_renewed_while_sweeps_have_every_place_of_jobs",),
    ),
)
