"""Where the books are: in a data directory of the local runner, or at given addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import RunnerError
from deploy.local.plan import GATEWAY_RECORD, SERVICES
from deploy.local.state import audit_urls


@dataclass(frozen=True, slots=True)
class Sources:
    """The audit role's address of each service's database, and the gateway's record."""

    databases: Mapping[str, str]
    gateway_record: Path


class CannotAudit(RunnerError):  # noqa: N818 - a fact about the surroundings
    """The books cannot be read; the message is the one line to print."""


def urls_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The databases that TALLY_<SERVICE>_AUDIT_DATABASE_URL name: of all services or of none.

    Raises CannotAudit if some are missing.
    """
    names = {service: f"TALLY_{service.upper()}_AUDIT_DATABASE_URL" for service in SERVICES}
    urls = {service: environment.get(name, "") for service, name in names.items()}
    missing = [names[service] for service, url in urls.items() if not url]
    if len(missing) == len(SERVICES):
        return {}
    if missing:
        raise CannotAudit(f"{missing[0]} is not set: the audit needs the databases of all services")
    return urls


@contextlib.contextmanager
def sources_of_stack(data_dir: Path, gateway_record: Path | None = None) -> Iterator[Sources]:
    """The books of a data directory. If its stack is stopped, PostgreSQL runs for this time.

    Enter it in the main thread. Raises RunnerError.
    """
    with audit_urls(data_dir) as urls:
        missing = [service for service in SERVICES if service not in urls]
        if missing:
            raise CannotAudit(f"the stack in {data_dir} has no {missing[0]} service")
        yield Sources(urls, gateway_record or data_dir / GATEWAY_RECORD)
