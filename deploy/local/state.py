"""Where a data directory's databases are, so that an audit finds them, running or stopped."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from deploy.local.data_dir import DirectoryInUse, locked
from deploy.local.errors import RunnerError
from deploy.local.postgres import PostgresServer
from deploy.local.secret_files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from deploy.local.postgres_roles import ServiceUrls

STATE_FILE = "state.json"


def write_state(
    data_dir: Path, databases: Mapping[str, ServiceUrls], outside: Mapping[str, ServiceUrls]
) -> None:
    """Record the audit's addresses, and which of them are not the directory's own server's."""
    write_json(
        data_dir / STATE_FILE,
        {
            "audit_urls": {service: urls.audit for service, urls in databases.items()},
            "outside": sorted(outside),
        },
    )


@contextlib.asynccontextmanager
async def audited(data_dir: Path) -> AsyncIterator[dict[str, str]]:
    """Give the audit role's address of each service's database.

    A stopped stack's PostgreSQL is started meanwhile, on a free port, and the directory held.
    Enter it in the main thread (see Child). Raises RunnerError if there is no stack.
    """
    state = read_json(data_dir / STATE_FILE)
    if state is None:
        raise RunnerError(f"no stack has been started in {data_dir}: run `make up` first")
    urls = {str(service): str(url) for service, url in state["audit_urls"].items()}
    own = [service for service in urls if service not in state["outside"]]
    missing = [service for service, url in urls.items() if not url]
    if missing:
        raise RunnerError(f"TALLY_{missing[0].upper()}_AUDIT_DATABASE_URL is not known")
    with contextlib.ExitStack() as exits:
        if own:
            with contextlib.suppress(DirectoryInUse):
                # Free means that the stack has stopped, however it ended.
                exits.enter_context(locked(data_dir))
                server = exits.enter_context(PostgresServer(data_dir / "postgres"))
                urls |= {service: server.urls(service).audit for service in own}
        yield urls
