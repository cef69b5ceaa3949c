"""How the calls that this process served have ended, compared with what the servicers declare."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from prometheus_client import Counter

from common import metrics


class End(NamedTuple):
    """A method by its full name, and how a call of it ended."""

    method: str
    code: str
    reason: str


_reported: Final[set[End]] = set()


def undeclared() -> list[End]:
    """Ends that no servicer declares, since this was called last."""
    found = [
        end
        for counter, items in ((metrics.CALLS, False), (metrics.BULK_ITEMS, True))
        for end in _ends(counter)
        if end not in _reported and end not in _declared(items=items)
    ]
    _reported.update(found)
    return found


def _ends(counter: Counter) -> Iterator[End]:
    for metric in counter.collect():
        for sample in metric.samples:
            end = End(*(sample.labels[name] for name in End._fields))
            tally = end.method.startswith("/tally.") and "/tally.test." not in end.method
            if tally and end.code != "OK" and sample.name.endswith("_total") and sample.value:
                yield end


@cache
def _declared(*, items: bool) -> frozenset[End]:
    # Imported when it is needed: most unit tests serve no call.
    from common.rpc import reasons
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
