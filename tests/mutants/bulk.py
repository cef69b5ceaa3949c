"""Planted bugs of bulk calls: in the lanes, in the handlers, and in a service."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_LANE: Final = "tests/integration/common/test_bulk.py::"
_ITEMS: Final = "tests/unit/common/test_bulk_items.py::"
_API: Final = "tests/integration/balance/test_batch_write.py::"

BULK: Final = (
    Mutant(
        "bulk-among-single-calls",
        "commands of bulk calls wait in the queue of the single calls",
        file="common/batching/queues.py",
        old="return self._bulk if entry.bulk else self._single",
        new="return self._single",
        tests=(f"{_LANE}test_bulk_items_take_half_of_a_batch_while_single_calls_wait",),
    ),
    Mutant(
        "bulk-in-the-whole-batch",
        "bulk calls take all that single calls leave of a batch",
        file="common/batching/queues.py",
        old="self._bulk.take(half, half_weight, admit)",
        new="self._bulk.take(size_max - len(batch), WEIGHT_MAX, admit)",
        tests=(f"{_LANE}test_bulk_items_take_half_of_a_batch_while_single_calls_wait",),
    ),
    Mutant(
        "bulk-without-places",
        "a bulk call enters the lane with all of its commands at once",
        file="common/batching/bulk.py",
        old="                    await self._places.acquire()\n",
        new="",
        tests=(f"{_LANE}test_single_calls_are_accepted_while_bulk_calls_fill_their_places",),
    ),
    Mutant(
        "bulk-outcomes-as-they-come",
        "the outcomes of a bulk call are in the order in which they were decided",
        file="common/batching/bulk.py",
        old="        self.outcomes[position] = outcome\n",
        new="        self.outcomes[-self._undecided] = outcome\n",
        tests=(f"{_LANE}test_each_command_has_its_own_outcome_in_the_order_of_the_call",),
    ),
    Mutant(
        "bulk-until-its-deadline",
        "a bulk call waits for its commands until its deadline has passed",
        file="common/batching/bulk.py",
        old="return left_s - min(RETURN_S, left_s / 4)",
        new="return left_s",
        tests=(f"{_LANE}test_a_bulk_call_returns_before_its_deadline",),
    ),
    Mutant(
        "bulk-counted-as-one-call",
        "a bulk call takes one slot, however many items it has",
        file="common/rpc/concurrency.py",
        old="taken = max(1, min(items, BULK_SLOTS_MAX, share))",
        new="taken = 1",
        tests=(f"{_ITEMS}test_items_count_up_to_half_of_the_slots",),
    ),
    Mutant(
        "invalid-items-last",
        "the results of invalid items come after those of the others",
        file="common/rpc/bulk.py",
        old="outcomes.insert(position, refusal)",
        new="outcomes.append(refusal)",
        tests=(f"{_ITEMS}test_every_item_has_its_result_in_its_place",),
    ),
    Mutant(
        "large-messages-for-every-method",
        "every method takes messages of the size that only bulk methods may have",
        file="common/rpc/handlers.py",
        old="        bytes_max = MESSAGE_BYTES_MAX\n",
        new="        bytes_max = BULK_BYTES_MAX\n",
        tests=(f"{_API}test_another_method_keeps_its_limit_of_64_kib",),
    ),
    Mutant(
        "bulk-item-is-another-request",
        "an item's request_id is not that of the single call",
        file="balance_service/servicer.py",
        old="            return _charge_from(item.charge)\n",
        new="""            item.charge.request_id += "-item"
            return _charge_from(item.charge)
""",
        tests=(f"{_API}test_items_are_posted_as_by_their_single_calls",),
    ),
)
