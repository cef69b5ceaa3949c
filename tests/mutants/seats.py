"""Planted bugs of seats."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_SEATS: Final = "tests/integration/order/test_seats.py::"
_WATCH: Final = "tests/integration/order/test_watch_seats.py::"
_RACES: Final = "tests/concurrency/order/test_seats.py::"
_LANE_LOCKS: Final = "tests/integration/common/test_lane_locks.py::"
_BREACH: Final = "tests/integration/audit/test_breaches.py::test_audit_reports_breach"

SEATS: Final = (
    Mutant(
        "seat-version-not-compared",
        "a seat is written whatever has become of it since it was read",
        file="order_service/store/seat.py",
        old="    .where(seats.c.version == _changed.c.loaded_version, seats.c.state",
        new="    .where(sa.true(), _changed.c.loaded_state",
        tests=(f"{_RACES}test_each_guard_alone_gives_a_seat_to_one",),
    ),
    Mutant(
        "seat-guard-without-live",
        "an order's seats are recorded as not live: the last guard sees none of them",
        file="order_service/store/seat.py",
        old="rows = [(order.order_id, *key, True) for",
        new="rows = [(order.order_id, *key, False) for",
        tests=(f"{_RACES}test_each_guard_alone_gives_a_seat_to_one",),
    ),
    Mutant(
        "seats-stay-with-a-cancelled-order",
        "an order that is cancelled keeps its seats in its record",
        file="order_service/use_cases/order_decider.py",
        old="            *seat_store.freeing(batch.without_seats),\n",
        new="",
        tests=(f"{_SEATS}test_an_order_has_its_seats_until_it_is_cancelled",),
    ),
    Mutant(
        "taken-seats-in-part",
        "an order gets the seats that are free and leaves out the others",
        file="order_service/use_cases/seat.py",
        old="    taken = {key for key in command.seats if not seats[key].free}\n",
        new="    taken = {key for key in command.seats[:1] if not seats[key].free}\n",
        tests=(f"{_SEATS}test_every_taken_seat_is_named_and_none_is_reserved",),
    ),
    Mutant(
        "replay-refused-early",
        "a repeated order is refused for the seats that it has",
        file="order_service/use_cases/seat.py",
        old="in refusals.items() if records.get(orders[at].key) is None}",
        new="in refusals.items()}",
        tests=(f"{_SEATS}test_a_request_that_took_its_seats_is_replayed_not_refused",),
    ),
    Mutant(
        "seated-line-without-seats",
        "a line of a seated product need not name its seats",
        file="order_service/use_cases/seat.py",
        old="        if product.seated and not line.seats:\n",
        new="        if product.seated and line.quantity > 10**6:\n",
        tests=(f"{_SEATS}test_an_order_that_does_not_fit_its_products_is_refused",),
    ),
    Mutant(
        "seats-not-in-the-digest",
        "the same request_id with other seats is taken for a repetition",
        file="order_service/model/order.py",
        old="content += [line.product_id, line.quantity, *sorted(line.seats)]",
        new="content += [line.product_id, line.quantity]",
        tests=(f"{_SEATS}test_an_order_has_its_seats_until_it_is_cancelled",),
    ),
    Mutant(
        "map-misses-the-end-of-a-version",
        "of a change with more seats than a read has, the rest is never sent",
        file="order_service/use_cases/seat_watch.py",
        old="            seats = [seat for seat in seats if seat.version < seats[-1].version]\n",
        new="            pass\n",
        tests=(f"{_WATCH}test_a_change_of_more_seats_than_a_read_has_is_complete",),
    ),
    Mutant(
        "version-on-every-part",
        "each part of a map claims to complete it",
        file="order_service/use_cases/seat_watch.py",
        old="            yield seats, version if last else None\n",
        new="            yield seats, version\n",
        tests=(f"{_WATCH}test_a_large_map_comes_in_parts_and_the_last_has_the_version",),
    ),
    Mutant(
        "changes-kept-for-ever",
        "all changes of seats are kept for a client that never reads",
        file="order_service/use_cases/seat_watch.py",
        old="        if len(self._seats) > CHANGES_MAX:\n",
        new="        if False:\n",
        tests=(f"{_WATCH}test_a_reader_far_behind_gets_its_changes_from_the_database",),
    ),
    Mutant(
        "forgotten-changes-not-read",
        "a client that is far behind misses the changes that are not kept any more",
        file="order_service/use_cases/seat_watch.py",
        old="        if position < _through(self._since):\n            return None\n",
        new="",
        tests=(f"{_WATCH}test_a_reader_that_leaves_off_in_a_message_misses_nothing",),
    ),
    Mutant(
        "waits-and-holds",
        "a command that waits for one Redis lock holds its others meanwhile",
        file="common/batching/lane.py",
        old="            await self._locks.release(replace(grant, acquired=unneeded))\n",
        new="            pass\n",
        tests=(f"{_LANE_LOCKS}test_a_command_takes_all_of_its_keys_or_holds_none",),
    ),
    Mutant(
        "seat-of-nobody-accepted",
        "the audit accepts a seat that is sold to no order",
        file="deploy/audit/order_seats.py",
        old="(s.state, s.order_id) IS DISTINCT FROM (coalesce(o.of_seat, 'FREE'), o.order_id)",
        new="o.order_id <> s.order_id",
        tests=(f"{_BREACH}[order: a free seat is sold to nobody]",),
    ),
)
