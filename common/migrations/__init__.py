"""Alembic, run the same way for every service: one env.py here, the versions in each service."""

from common.migrations.run import migrate, migrate_connection

__all__ = ["migrate", "migrate_connection"]
