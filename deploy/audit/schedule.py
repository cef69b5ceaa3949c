"""When the next audit is due, and of which scope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from deploy.audit.checkpoint import Memory
from deploy.audit.settings import AuditSettings

RECENT: Final = "recent"
FULL: Final = "full"


def wall_clock() -> datetime:
    """The time of day is the wall clock's, which the interval between two audits follows."""
    return datetime.now(UTC)  # noqa: TID251 - no time that is stored in a database


@dataclass(slots=True)
class Schedule:
    """When each scope is due. Until the first full verdict there is nothing recent."""

    full_at: time
    interval: timedelta
    retry: timedelta
    full_due: datetime
    recent_due: datetime | None

    @classmethod
    def of(cls, settings: AuditSettings, memory: Memory) -> Schedule:
        """From the last verdicts. What became due while nothing ran is due at once."""
        interval = timedelta(seconds=settings.recent_interval_s)
        now = wall_clock()
        full_due, recent_due = now, None
        if memory.full is not None:
            full_due = next_time(_of(memory.full.start), settings.full_at)
            last = max(each.start for each in (memory.full, memory.recent) if each is not None)
            recent_due = _of(last) + interval
        retry = timedelta(seconds=settings.retry_s)
        return cls(settings.full_at, interval, retry, full_due, recent_due)

    def next(self) -> tuple[str, float]:
        """The scope that is due first, and in how many seconds."""
        scope, due = FULL, self.full_due
        if self.recent_due is not None and self.recent_due <= due:
            scope, due = RECENT, self.recent_due
        return scope, max(0.0, (due - wall_clock()).total_seconds())

    def ended(self, scope: str, *, well: bool) -> None:
        """An audit has just ended; ``well``: with a verdict, good or bad."""
        now = wall_clock()
        if scope == FULL:
            self.full_due = next_time(now, self.full_at) if well else now + self.retry
        if scope == RECENT and not well:
            self.recent_due = now + min(self.retry, self.interval)
        elif well:
            self.recent_due = now + self.interval


def next_time(after: datetime, at: time) -> datetime:
    """The first moment after this one that has this time of day, in UTC."""
    moment = datetime.combine(after.date(), at.replace(tzinfo=None), UTC)
    return moment if moment > after else moment + timedelta(days=1)


def _of(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
