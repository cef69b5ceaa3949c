"""One event of a timeline, and how its parts are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from common.ids import is_id

Row: TypeAlias = Mapping[str, Any]
"""A row of a database, by column."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened at one time, as a service's database recorded it."""

    time: datetime
    service: str
    what: str
    amount: str = ""
    """Minor units and the currency; signed in the ledger."""
    change: str = ""
    """From → to."""
    ids: dict[str, str] = field(default_factory=dict)
    """The ids concerned, by their names in the contract."""


def money(minor: int | None, currency_code: str) -> str:
    """Minor units, as ``4,500 KRW``; '' for none."""
    return "" if minor is None else f"{minor:,} {currency_code}"


def short(id_: str) -> str:
    """The end of an id that a service made: those of one minute begin alike."""
    return f"…{id_[-6:]}" if is_id(id_) else id_


def clock(time: datetime | None) -> str:
    """The time of day in UTC, in milliseconds."""
    return "" if time is None else f"{time.astimezone(UTC):%H:%M:%S.%f}"[:-3]


def at(time: datetime) -> str:
    """Date and time in UTC, in seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
