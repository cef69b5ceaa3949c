"""The ids that a recent audit is about: read once for each unit, and kept in temporary files.

There may be any number of them, so every reader takes them in batches.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryFile
from typing import IO, Final

from deploy.audit.merge_join import stream
from deploy.audit.services import SERVICES
from deploy.audit.snapshots import Books, database_errors
from deploy.audit.units import Units

UNITS: Final[dict[str, Units]] = {name: checks.units for name, checks in SERVICES.items()}
"""By service."""

Since = Mapping[str, datetime]
"""By service, a time of its database's clock."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids in the order of code points. They can be read again and again, one reader at a time."""

    file: IO[str]

    def __iter__(self) -> Iterator[str]:
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)


Touched = Mapping[tuple[str, str], Ids]
"""By service and unit, what was touched."""


@asynccontextmanager
async def touched_since(books: Books, since: Since | None) -> AsyncIterator[Touched | None]:
    """What was touched since then; None: everything counts as touched. Raises CannotAudit."""
    if since is None:
        yield None
        return
    found = dict[tuple[str, str], Ids]()
    with ExitStack() as files:
        for service, units in UNITS.items():
            for name, unit in units.items():
                file = files.enter_context(TemporaryFile("w+", encoding="utf-8"))
                with database_errors(service):
                    statement = unit.touched_ids(since[service])
                    async for (one,), _ in stream(books[service], statement, 1):
                        file.write(json.dumps(one) + "\n")
                found[service, name] = Ids(file)
        yield found
