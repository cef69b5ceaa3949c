"""PostgreSQL: engines, errors, row locks, idempotency records, migrations and readiness."""
