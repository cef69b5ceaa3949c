"""Revisions of schemas. Each begins with its service's name, so that a service knows its own.

Alembic stores the revision in the same table in every database. A plain number would match in any
of them.
"""

from __future__ import annotations


class ForeignSchema(Exception):  # noqa: N818 - a wrong address, not a fault
    """The database has another service's schema. The message says which one, and what to do."""


def service_of(revision: str) -> str:
    """``balance`` for ``balance_0002``; '' for a revision without a service."""
    return revision.rpartition("_")[0]


def require_own(found: str, own: str, database: str | None) -> None:
    """Raise ForeignSchema unless the revision ``found`` in the database is of ``own``'s service.

    An empty ``found`` is a database that has not been migrated, which any service may use.
    """
    service = service_of(own)
    if not found or service_of(found) == service:
        return
    if not service_of(found) and found.isdecimal():
        raise ForeignSchema(
            f"database {database} has a schema from before the first release (revision {found}): "
            "drop it and migrate again; if `make up` made it, remove .tally/data"
        )
    raise ForeignSchema(
        f"database {database} is not {service}'s, its schema is {found}: name {service}'s own"
    )
