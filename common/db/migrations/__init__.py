"""Alembic for every service: env.py is here, the revisions are in each service."""

from common.db.migrations.indexes import create_index
from common.db.migrations.run import execute, migrate

__all__ = ["create_index", "execute", "migrate"]
