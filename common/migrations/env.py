"""Alembic's entry point; the connection comes from ``common.migrations.run``."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
