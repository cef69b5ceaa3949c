"""Alembic's entry point; the connection comes from ``common.db.migrations.run``.

Each revision is a transaction of its own: what one has locked is free before the next one waits.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
