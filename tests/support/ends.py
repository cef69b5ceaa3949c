"""How the calls that this process served have ended, compared with what the servicers declare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final, NamedTuple

import pytest
from prometheus_client import Counter

from common import metrics
from common.rpc import reasons


class End(NamedTuple):
    """A method by its full name, and how a call of it ended."""

    method: str
    code: str
    reason: str


MADE_UP: Final = frozenset({"NO_THANKS"})
"""Reasons that stand-ins of other services refuse with (``tests.support.sagas``)."""
_seen: Final[dict[tuple[bool, End], float]] = {}
"""The counters of ends that no servicer declares, of items (True) and of calls, as they were."""
_of_stand_ins: Final[set[str]] = set()
"""Methods that a test has served itself: they end as the test likes."""


@contextmanager
def stand_ins_noted() -> Iterator[None]:
    """A block in which servicers that declare nothing are taken for stand-ins."""
    begin = reasons.count_from_zero

    def note(path: str, method: object) -> None:
        if not reasons.is_declared(method):
            _of_stand_ins.add(path)
        begin(path, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reasons, "count_from_zero", note)
        yield


def undeclared() -> list[End]:
    """Ends that no servicer declares, since this was called last."""
    counts = {
        (items, end): count
        for counter, items in ((metrics.CALLS, False), (metrics.BULK_ITEMS, True))
        for end, count in _ends(counter)
        if end not in _declared(items=items)
    }
    # Increments: the same end may be a stand-in's in one module, and a real one in the next.
    found = [each[1] for each, count in counts.items() if count > _seen.get(each, 0.0)]
    _seen.update(counts)
    of_tally = {end.method for end in _declared(items=False)} if found else set()
    named = [end for end in found if end.reason not in MADE_UP]
    real = [end for end in named if end.method in of_tally - _of_stand_ins]
    _of_stand_ins.clear()
    return real


def _ends(counter: Counter) -> Iterator[tuple[End, float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            end = End(*(sample.labels[name] for name in End._fields))
            tally = end.method.startswith("/tally.") and end.code != "OK"
            if tally and sample.name.endswith("_total") and sample.value:
                yield end, sample.value


@cache
def _declared(*, items: bool) -> frozenset[End]:
    # Imported when it is needed: most unit tests serve no call.
    from deploy.errors_reference import methods

    return frozenset(
        End(method.path, code.value, reason)
        for method in methods()
        for code, reason in (
            reasons.ends_of_items(method.function)
            if items
            else reasons.ends_of(method.path, method.function)
        )
    )
