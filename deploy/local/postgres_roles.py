"""The databases and roles of the services: names, addresses, and the SQL that creates them.

A service has one database and three roles: owner (migrations), runtime (no DDL), audit (read
only). None of them may connect to another service's database. What runtime and audit may do with
the tables is granted by the service's own migrations.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

from deploy.local.errors import RunnerError

ROLE_KINDS: Final = ("owner", "runtime", "audit")


@dataclasses.dataclass(frozen=True)
class ServiceUrls:
    """The addresses of one database, by role."""

    owner: str
    runtime: str
    audit: str


def url(role: str, password: str, place: str, database: str) -> str:
    """``place``: host and port."""
    return f"postgresql://{role}:{password}@{place}/{database}"


def roles_of(service: str) -> list[str]:
    """The names of its roles, in the order of ROLE_KINDS."""
    return [f"tally_{service}_{kind}" for kind in ROLE_KINDS]


def service_urls(
    service: str, passwords: Mapping[str, str], place: str, database: str | None = None
) -> ServiceUrls:
    """The addresses of the service's database, or of a clone of it. ``passwords`` are by role."""
    database = database or f"tally_{service}"
    return ServiceUrls(*(url(role, passwords[role], place, database) for role in roles_of(service)))


def checked_name(name: str) -> str:
    """Refuse a name that would need quoting: names and passwords are inserted into scripts."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise RunnerError(f"not a name for a database, a role or a service: {name!r}")
    return name


def role_sql(role: str, password: str) -> str:
    """Create the role, or correct its password and rights."""
    checked_name(role)
    return f"""
SELECT 'CREATE ROLE "{role}"'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \\gexec
ALTER ROLE "{role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
  PASSWORD '{password}';
"""  # noqa: S608 - the name is checked, the password hexadecimal


def database_sql(database: str, service: str, template: str | None = None) -> str:
    """Create the database if it does not exist; only its service's roles may connect to it.

    The rights are set for a clone too: CREATE DATABASE copies the content of a template, not who
    may connect to it.
    """
    for name in (database, service, template or database):
        checked_name(name)
    create = f'CREATE DATABASE "{database}" OWNER "tally_{service}_owner"'
    if template is not None:
        # A copy of the files costs half of what their pages cost in the WAL, if fsync is off.
        create += f' TEMPLATE "{template}" STRATEGY FILE_COPY'
    return f"""
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SELECT '{create}'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{database}') \\gexec
REVOKE ALL ON DATABASE "{database}" FROM PUBLIC;
GRANT CONNECT ON DATABASE "{database}" TO "tally_{service}_runtime", "tally_{service}_audit";
"""  # noqa: S608 - the names are checked


def service_sql(service: str, passwords: Mapping[str, str]) -> str:
    """Create the service's database and its roles, or correct them. ``passwords`` are by role."""
    roles = "".join(role_sql(role, passwords[role]) for role in roles_of(service))
    return roles + database_sql(f"tally_{service}", service)
