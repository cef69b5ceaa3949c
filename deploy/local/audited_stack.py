"""The books of a data directory, as the audit reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deploy.audit.errors import CannotAudit
from deploy.audit.sources import SERVICES, Sources
from deploy.local.plan import GATEWAY_RECORD
from deploy.local.state import audit_urls


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
