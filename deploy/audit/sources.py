"""Where the books are: a data directory's stack, running or stopped, or given addresses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.state import audited

SERVICES: Final = ("balance", "coupon", "order", "payment")
GATEWAY_RECORD: Final = "gateway.sqlite3"


@dataclass(frozen=True, slots=True)
class Sources:
    """The audit role's address of each service's database, and the gateway's record."""

    databases: Mapping[str, str]
    gateway_record: Path


class CannotLook(Exception):  # noqa: N818 - a fact about the surroundings
    """The books could not be seen; the message is the one line to show."""


def named_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The databases that TALLY_<SERVICE>_AUDIT_DATABASE_URL name: of all services or of none.

    Raises CannotLook if some are missing.
    """
    names = {service: f"TALLY_{service.upper()}_AUDIT_DATABASE_URL" for service in SERVICES}
    found = {service: environment.get(name, "") for service, name in names.items()}
    missing = [names[service] for service, url in found.items() if not url]
    if len(missing) == len(SERVICES):
        return {}
    if missing:
        raise CannotLook(f"{missing[0]} is not set: the audit needs the databases of all services")
    return found


@contextlib.asynccontextmanager
async def of_stack(data_dir: Path, gateway_record: Path | None = None) -> AsyncIterator[Sources]:
    """The books of a data directory; a stopped stack's PostgreSQL runs meanwhile.

    Enter it in the main thread. Raises CannotLook.
    """
    async with contextlib.AsyncExitStack() as exits:
        try:
            urls = await exits.enter_async_context(audited(data_dir))
        except (RunnerError, OSError) as error:
            raise CannotLook(str(error).strip()) from error
        missing = [service for service in SERVICES if service not in urls]
        if missing:
            raise CannotLook(f"the stack in {data_dir} has no {missing[0]} service")
        yield Sources(urls, gateway_record or data_dir / GATEWAY_RECORD)
