"""Alembic's entry point. The connection comes from ``common.db.migrations.run``.

Each revision is a transaction of its own: its locks are released before the next revision waits.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
