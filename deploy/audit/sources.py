"""Where the books are: the databases' addresses, and the gateway's side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from common.environment import SettingsError, file_of, source_of
from common.process_settings import DatabaseClientSettings
from common.settings import read
from common.urls import engine_url
from deploy.audit.errors import CannotAudit
from deploy.audit.gateway_api import GatewayAddress

SERVICES: Final = ("balance", "coupon", "order", "payment")
DATABASE: Final = "audit_database_url"


@dataclass(frozen=True, slots=True)
class Sources:
    """The audit role's address of each service's database, and the gateway's side.

    The gateway's side is the simulator's record, or the gateway's API; with neither it is left out,
    and the report says so.
    """

    databases: Mapping[str, str]
    gateway_record: Path | None = None
    gateway_api: GatewayAddress | None = None


class AuditDatabaseSettings(DatabaseClientSettings):
    """Which addresses of databases the audit accepts."""

    service: ClassVar[str] = "audit"


def urls_of_settings(services: Sequence[str] = SERVICES) -> dict[str, str]:
    """The databases that TALLY_<SERVICE>_AUDIT_DATABASE_URL name: of all services or of none.

    Each is a variable, or a file in TALLY_SECRETS_DIR, read anew by each call. Raises CannotAudit
    if some are missing or malformed, or do not verify the server and this is production.
    """
    urls = {service: value_of(service, DATABASE) for service in services}
    missing = [service for service, url in urls.items() if not url]
    if len(missing) == len(services):
        return {}
    if missing:
        name = source_of(missing[0], DATABASE)
        raise CannotAudit(f"{name} is not set: the databases of all services are needed")
    accepted = _accepted()
    for service, url in urls.items():
        try:
            engine_url(url)
            problem = accepted.database_problem(url)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise CannotAudit(f"{source_of(service, DATABASE)}: {problem}")
    return urls


def _accepted() -> AuditDatabaseSettings:
    try:
        return read(AuditDatabaseSettings)
    except SettingsError as error:
        raise CannotAudit(str(error)) from None


def value_of(service: str, field: str) -> str:
    """A setting of a service, from its variable or its file; '' if it is not set.

    Raises CannotAudit if the directory of secrets cannot be read.
    """
    try:
        file = file_of(service, field)
        text = file.read_text(encoding="utf-8") if file else None
        return (os.environ.get(source_of(service, field), "") if text is None else text).strip()
    except (SettingsError, OSError) as error:
        raise CannotAudit(str(error)) from None
