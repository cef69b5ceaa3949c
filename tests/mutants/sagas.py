"""Planted bugs of sagas: their steps, journal, takeover and resolution."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_STEPS: Final = "tests/unit/order/test_saga.py::"
_RESOLUTION: Final = "tests/unit/order/test_saga_resolution.py::"
_JOURNAL: Final = "tests/integration/order/test_saga_journal.py::"
_TAKEOVERS: Final = "tests/integration/order/test_saga_takeover.py::"
_BATCHES: Final = "tests/integration/order/test_saga_batches.py::"
_PAY: Final = "tests/integration/order/test_pay_order.py::"
_SAGAS: Final = "tests/integration/order/test_sagas.py::"

SAGAS: Final = (
    Mutant(
        "call-before-the-journal",
        "a step is called before the journal has that it begins",
        file="order_service/saga/execution.py",
        old="""            saga.begin(record, running.now)
            await self._writes.write(running, lease_s=self._limits.lease_s)
        reply = await self._calls.do(
            step, record, step.call(saga), limit_s=self._limit_s(running, step)
        )
""",
        new="""            saga.begin(record, running.now)
        reply = await self._calls.do(
            step, record, step.call(saga), limit_s=self._limit_s(running, step)
        )
        await self._writes.write(running, lease_s=self._limits.lease_s)
""",
        tests=(f"{_STEPS}test_each_step_is_called_once_after_it_was_written",),
    ),
    Mutant(
        "takeover-calls-as-if-new",
        "a replica that takes a saga over repeats its first call without a write",
        file="order_service/model/saga.py",
        old="untouched = self.epoch == 1 and self.snapshot == 0",
        new="untouched = self.snapshot == 0",
        tests=(f"{_STEPS}test_a_saga_whose_replica_dies_before_it_calls_is_taken_over",),
    ),
    Mutant(
        "undo-before-the-journal",
        "compensations are called before the decision to turn back is durable",
        file="order_service/saga/execution.py",
        old="with what has been compensated.\n        await self._writes.write("
        "running, lease_s=self._limits.lease_s)\n",
        new="with what has been compensated.\n",
        tests=(f"{_STEPS}test_a_crash_while_undoing_is_taken_over_and_undone",),
    ),
    Mutant(
        "refused-step-not-undone",
        "a step that was refused is not compensated",
        file="order_service/model/saga.py",
        old="    {StepState.BEGUN, StepState.DONE, StepState.REFUSED, StepState.UNKNOWN}\n",
        new="    {StepState.BEGUN, StepState.DONE, StepState.UNKNOWN}\n",
        tests=(f"{_STEPS}test_a_refused_step_and_all_before_it_are_undone_together",),
    ),
    Mutant(
        "unknown-step-not-undone",
        "a step without a reply is not compensated",
        file="order_service/model/saga.py",
        old="    {StepState.BEGUN, StepState.DONE, StepState.REFUSED, StepState.UNKNOWN}\n",
        new="    {StepState.BEGUN, StepState.DONE, StepState.REFUSED}\n",
        tests=(f"{_STEPS}test_an_unknown_step_before_the_pivot_is_undone_as_a_refused_one",),
    ),
    Mutant(
        "unknown-pivot-undone",
        "a payment whose outcome is unknown turns its saga back",
        file="order_service/saga/execution.py",
        old="        if effect is StepEffect.REFUSED:\n            saga.refuse(record, reply",
        new="        if not unreached:\n            saga.refuse(record, reply",
        tests=(f"{_STEPS}test_an_unknown_pivot_is_called_again",),
    ),
    Mutant(
        "late-saga-goes-on",
        "an attempt that is late for its payment goes on",
        file="order_service/saga/execution.py",
        old="if running.late and not at_pivot:",
        new="if running.late and at_pivot:",
        tests=(f"{_STEPS}test_a_saga_late_for_its_pivot_does_no_step",),
    ),
    Mutant(
        "takeover-without-epoch",
        "a takeover does not raise the epoch: the replica before can still write",
        file="order_service/store/journal.py",
        old="        epoch=sagas.c.epoch + 1,\n",
        new="        epoch=sagas.c.epoch,\n",
        tests=(f"{_SAGAS}test_another_replica_takes_over_and_the_stale_one_stops",),
    ),
    Mutant(
        "takeover-of-a-live-lease",
        "sagas are taken over from replicas that run them",
        file="order_service/store/journal.py",
        old="        sagas.c.lease_until < sa.func.now(),\n",
        new="",
        tests=(f"{_JOURNAL}test_a_renewed_lease_keeps_other_replicas_away",),
    ),
    Mutant(
        "journal-of-an-ended-saga",
        "a saga that has ended is written as if it went on",
        file="order_service/store/journal.py",
        old="    return sa.and_(same(sagas, wanted), sagas.c.state == sa.any_(states))\n",
        new="    return same(sagas, wanted)\n",
        tests=(f"{_JOURNAL}test_an_ended_saga_is_neither_written_nor_taken_over",),
    ),
    Mutant(
        "older-snapshot-last",
        "a late older snapshot replaces a newer one",
        file="order_service/store/journal.py",
        old="        sagas.c.snapshot < _written.c.snapshot,\n",
        new="",
        tests=(f"{_JOURNAL}test_an_older_snapshot_replaces_no_newer_one",),
    ),
    Mutant(
        "retries-without-limit",
        "sagas that failed before take the whole bulkhead",
        file="order_service/store/journal.py",
        old="size = min(most, command.capacity - len(rows), retries if retry else most)",
        new="size = min(most, command.capacity - len(rows))",
        tests=(f"{_TAKEOVERS}test_sagas_that_failed_before_come_last_and_are_limited",),
    ),
    Mutant(
        "close-under-any-epoch",
        "a replica that has lost a saga can still end it and move its order",
        file="order_service/use_cases/saga_decisions.py",
        old="if row is None or row.epoch != saga.epoch or row.state not in ACTIVE:",
        new="if row is None or row.state not in ACTIVE:",
        tests=(
            f"{_BATCHES}test_a_resolved_saga_is_lost_to_its_replica_in_the_same_batch",
            f"{_BATCHES}test_a_saga_is_closed_once",
        ),
    ),
    Mutant(
        "resolve-without-epoch",
        "ResolveSaga leaves the epoch to a replica that was paused",
        file="order_service/use_cases/saga_resolution.py",
        old="    saga.epoch += 1\n",
        new="",
        tests=(f"{_BATCHES}test_a_resolved_saga_is_lost_to_its_replica_in_the_same_batch",),
    ),
    Mutant(
        "release-without-fence",
        "ResolveSaga frees the order before its payment carries a cancellation",
        file="order_service/saga/plan.py",
        old="if participant is None or (saga.fences and record.fenced and not fenced):",
        new="if participant is None or (saga.fences and not fenced and participant is PAYMENT):",
        tests=(f"{_RESOLUTION}test_the_order_is_free_when_all_is_undone_or_certain_to_be",),
    ),
    Mutant(
        "resolving-saga-moves-its-order",
        "the end of a resolved saga moves an order that another attempt may have paid",
        file="order_service/use_cases/saga_decisions.py",
        old="if saga.state is not SagaState.RESOLVING:",
        new="if saga.state is not SagaState.RESOLVED:",
        tests=(f"{_SAGAS}test_a_resolved_saga_gives_back_and_frees_its_order",),
    ),
    Mutant(
        "undone-effect-may-stand",
        "an effect whose compensation has begun can be recorded as standing",
        file="order_service/use_cases/saga_resolution.py",
        old="if not landed or (step.undo_begun and saga.state is not SagaState.RESOLVED):",
        new="if not landed:",
        tests=(f"{_SAGAS}test_a_resolved_saga_keeps_its_order_while_a_service_is_away",),
    ),
    Mutant(
        "standing-effect-undone",
        "what a person let stand is undone",
        file="order_service/saga/plan.py",
        old="        elif not record.undoes and record.to_undo:\n",
        new="        elif not record.undoes and record.begin_time is not None:\n",
        tests=(f"{_RESOLUTION}test_what_stands_is_not_undone",),
    ),
    Mutant(
        "undo-under-the-steps-own-id",
        "a compensation names its own request_id instead of the step's",
        file="order_service/saga/plan.py",
        old='call = StepCall(saga, f"{record.request_id}:undo", record.request_id)',
        new='call = StepCall(saga, f"{record.request_id}:undo", f"{record.request_id}:undo")',
        tests=(f"{_STEPS}test_a_refused_step_and_all_before_it_are_undone_together",),
    ),
    Mutant(
        "refused-attempt-not-stored",
        "the refusal of an attempt to pay is not stored with the end of its saga",
        file="order_service/use_cases/saga_decisions.py",
        old="        records.refuse(PayAttempt(saga), saga.failure, _FAILURE_BODY)\n",
        new="",
        tests=(f"{_PAY}test_duplicates_on_any_replica_get_the_first_calls_result",),
    ),
)
