"""PostgreSQL: pools, statements, errors, locks, idempotency records, migrations, readiness."""
