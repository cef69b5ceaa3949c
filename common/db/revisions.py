"""Revisions of schemas. Each begins with its service's name, so that no service takes another's.

All services look for their revision in the table that Alembic keeps in every database: one that
counted merely from 0001 would find itself at home in any of them.
"""

from __future__ import annotations


class ForeignSchema(Exception):  # noqa: N818 - a wrong address, told to the operator
    """The database has a schema of something else; the message says of what, and what to do."""


def service_of(revision: str) -> str:
    """``balance`` of ``balance_0002``; '' if it names none."""
    return revision.rpartition("_")[0]


def require_own(found: str, own: str, database: str | None) -> None:
    """Raise ForeignSchema unless what was ``found`` in ``database`` is of the service of ``own``.

    Both are revisions; '' was found where nothing has been migrated yet, which is anybody's.
    """
    service = service_of(own)
    if not found or service_of(found) == service:
        return
    if not service_of(found) and found.isdecimal():
        raise ForeignSchema(
            f"database {database} has a schema of before the first release (revision {found}): "
            "drop it and migrate again; if `make up` made it, remove .tally/data"
        )
    raise ForeignSchema(
        f"database {database} is not {service}'s, its schema is {found}: name {service}'s own"
    )
