"""The names of the strategies, what each needs, and why some are missing from an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Name:
    """How the reports call a strategy, and what it takes to run it."""

    shown: str
    complexity: str


NAMES: Final = {
    "none": Name("none: read, then write", "none"),
    "check": Name("first check only", "low: one read"),
    "flag": Name("in-process flag", "low: a set in memory"),
    "optimistic": Name("optimistic", "low: a version column; callers get errors"),
    "optimistic+1": Name("optimistic, 1 retry", "medium: a version, a pause, work that can repeat"),
    "optimistic+3": Name(
        "optimistic, 3 retries", "medium: a version, pauses, work that can repeat"
    ),
    "optimistic+10": Name(
        "optimistic, 10 retries", "medium: a version, growing pauses with jitter"
    ),
    "conditional": Name("conditional update", "low: one statement"),
    "pessimistic": Name("pessimistic: FOR UPDATE", "low: one order of rows, wait limits"),
    "no-wait": Name("FOR UPDATE NOWAIT", "low: one error to translate"),
    "state-in-lock": Name("state inside the locking WHERE", "low: one order of rows"),
    "share": Name("FOR SHARE, then update", "low, and wrong to choose"),
    "unsorted": Name("row locks, unsorted", "low, and wrong to choose"),
    "sorted": Name("row locks, sorted", "low: one order of rows"),
    "unique": Name("unique key only, or first", "low: one constraint"),
    "unique-number": Name("unique user and number", "medium: constraints, numbers, retries"),
    "mark": Name("Redis key first (SET NX)", "medium: Redis, a time to live, a guard behind it"),
    "simple": Name("simple lock", "medium: Redis, leases, callers that are sent away"),
    "spin": Name("spin lock", "medium: Redis, leases, pauses, wait limits"),
    "handoff": Name("handoff lock", "high: Redis with pub/sub, leases, queues of waiters"),
    "handoff+version": Name("handoff lock and version", "high: the handoff lock, and a version"),
    "around": Name("lock around the retries", "high: the handoff lock, a version, pauses"),
    "inside": Name("lock inside each retry", "high: the handoff lock, a version, pauses"),
    "several-keys": Name("lock on several keys", "high: the handoff lock, one script for all keys"),
    "queue": Name("queue", "high: a stream, one consumer per partition, replies, takeover"),
    "shares": Name("shares", "medium: rows split beforehand, a rule for empty ones"),
    "lane": Name(
        "lane: one transaction per batch",
        "high: a queue in each process, batches; in Tally's common/batching",
    ),
    "lane-each": Name("lane, 100 ms for each command", "high: as lane"),
}
"""By key, in the order of the reports."""

_NO_WORK: Final = "only the charge has work that a batch could do once, and an interferer"
_ONLY: Final = {
    "check": "only coupons have a check that most requests fail before any lock",
    "flag": "the flag guards a call of the gateway, which only payments make",
    "optimistic+3": "as many retries as the reports give payments; elsewhere 1 or 10",
    "no-wait": "only seats want the loser to get its answer at once",
    "state-in-lock": "it is a conditional update with a row lock; shown once, on payments",
    "share": "its deadlock is shown once, on the account that everyone wants",
    "unsorted": "the order of locks matters with two rows, which only orders lock",
    "sorted": "the order of locks matters with two rows, which only orders lock",
    "unique-number": "only coupons are numbered",
    "handoff+version": "the second guard is shown once, on the seat",
    "around": _NO_WORK,
    "inside": _NO_WORK,
    "lane-each": _NO_WORK,
    "several-keys": "only orders need two keys",
    "shares": "only a quantity can be split beforehand",
    "unique": "changing a balance or a count inserts nothing that could be unique",
    "mark": "a mark per request stops duplicates, of which there are none",
}
"""Why a strategy is missing wherever it is."""
_OF_EXPERIMENT: Final = {
    "orders": "what is compared is the order in which two rows are locked",
    "payments": "no lock may be held while the gateway is called; a retry calls it again",
}
"""Why a strategy is missing from an experiment."""
_OF_PAIR: Final = {
    ("payments", "none"): "the in-process flag takes its place",
    ("coupons", "optimistic"): "every issue changes one row: the conditional update compares too",
    ("coupons", "optimistic+1"): "every issue changes one row: the conditional update compares too",
    (
        "coupons",
        "optimistic+10",
    ): "every issue changes one row: the conditional update compares too",
    ("seats", "optimistic"): "a loser is not retried; see handoff lock and version",
    ("seats", "optimistic+1"): "a loser is not retried",
    ("seats", "optimistic+10"): "a loser is not retried",
    ("seats", "queue"): "a loser would wait in the queue for its turn to lose",
    ("seats", "mark"): "the mark would be the simple lock",
    ("uniform", "optimistic+1"): "conflicts are rare: a second retry is hardly ever needed",
}


def reason(experiment: str, strategy: str) -> str:
    """Why the experiment has no cell for the strategy. Raises KeyError."""
    pair = _OF_PAIR.get((experiment, strategy)) or _ONLY.get(strategy)
    return pair or _OF_EXPERIMENT[experiment]
