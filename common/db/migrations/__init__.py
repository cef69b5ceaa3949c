"""Alembic, run the same way for every service: one env.py here, the versions in each service."""

from common.db.migrations.run import execute, migrate, migrate_connection

__all__ = ["execute", "migrate", "migrate_connection"]
