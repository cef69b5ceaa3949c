"""Which databases a program reads: those that settings name, or those of a data directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.environment import source_of
from common.urls import engine_url
from deploy.audit.errors import CannotAudit
from deploy.audit.sources import DATABASE, SERVICES, urls_of_settings, value_of

POSTGRES_PORT: Final = 5432


@dataclass(frozen=True, slots=True)
class Databases:
    """The audit role's address of each service's database."""

    urls: Mapping[str, str]
    data_dir: Path | None = None
    """The data directory that has them; None if settings name them."""


@contextlib.contextmanager
def open_databases(
    data_dir: Path | None, services: Sequence[str] = SERVICES
) -> Iterator[Databases]:
    """The databases of these services: of the data directory, if one is given; else those that
    settings name; else of the default data directory.

    If the stack of the directory is stopped, its PostgreSQL runs for this time: enter it in the
    main thread. Raises CannotAudit if both are given, and RunnerError.
    """
    named = [service for service in services if value_of(service, DATABASE)]
    if named and data_dir is not None:
        raise CannotAudit(
            f"{source_of(named[0], DATABASE)} is set, and a data directory is given (DATA_DIR,"
            " --data-dir): unset one, so that it is certain which databases are read"
        )
    if named:
        yield Databases(urls_of_settings(services))
        return
    try:
        # Not in the image, which has no stack.
        from deploy.local.plan import DEFAULT_DATA_DIR  # noqa: PLC0415
        from deploy.local.state import audit_urls  # noqa: PLC0415
    except ImportError:
        raise CannotAudit(f"{source_of(services[0], DATABASE)} is not set") from None
    directory = (data_dir or DEFAULT_DATA_DIR).absolute()
    with audit_urls(directory) as urls:
        missing = [service for service in services if service not in urls]
        if missing:
            raise CannotAudit(f"the stack in {directory} has no {missing[0]} service")
        yield Databases(urls, directory)


def places_of(urls: Mapping[str, str]) -> dict[str, str]:
    """By service, the place of its database, as ``host:port/name``: without user and password."""
    return {service: _place(url) for service, url in urls.items()}


def places_in_words(places: Mapping[str, str]) -> str:
    """The places for a reader, as ``a, b at host:port``: the databases of one server together."""
    servers: dict[str, list[str]] = {}
    for place in places.values():
        server, _, name = place.rpartition("/")
        servers.setdefault(server, []).append(name)
    return "; ".join(f"{', '.join(names)} at {server}" for server, names in servers.items())


def _place(url: str) -> str:
    parts = engine_url(url)
    host = f"[{parts.host}]" if ":" in str(parts.host) else parts.host
    return f"{host}:{parts.port or POSTGRES_PORT}/{parts.database}"
