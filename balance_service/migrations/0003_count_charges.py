"""Sums the charges of existing accounts from the ledger, some accounts at a time.

Replicas need not wait for it: a charge of an account whose sum is behind brings it up to date. This
revision does so beforehand, so that no charge has to read a ledger of millions of entries.

A sum is computed without locks, since the entries up to a version never change, and written only
over an older one. Each step is committed by itself; the whole can be run again at any time.

Revision ID: balance_0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from common.db.migrations import execute

revision = "balance_0003"
down_revision = "balance_0002"

ACCOUNTS_AT_ONCE = 100
"""Rows that one transaction locks."""

# It blocks no writes, but reads the table: not in the transaction that added the constraints.
VALIDATE = """
ALTER TABLE accounts
    VALIDATE CONSTRAINT accounts_charged_at_version,
    VALIDATE CONSTRAINT accounts_available_was_charged;
"""

# The earlier release charged without this limit. An account above it takes no further charge.
SUMS = """
SELECT user_id, currency_code, version, charged_at_version < version AS behind,
       CAST(least(charged_minor + (
           SELECT coalesce(sum(entry.amount_minor), 0) FROM ledger_entries AS entry
            WHERE entry.user_id = account.user_id AND entry.currency_code = account.currency_code
              AND entry.kind = 'CHARGE'
              AND entry.sequence > charged_at_version AND entry.sequence <= version
       ), 9223372036854775807) AS bigint) AS charged_minor
  FROM accounts AS account
 WHERE (user_id, currency_code) > (:user_id, :currency_code)
 ORDER BY user_id, currency_code LIMIT :size
"""

# In ascending order, as lanes lock accounts.
WRITE = """
WITH older AS MATERIALIZED (
    SELECT user_id, currency_code, sums.version, sums.charged_minor
      FROM unnest(CAST(:user_ids AS text[]), CAST(:currency_codes AS text[]),
                  CAST(:versions AS bigint[]), CAST(:charged AS bigint[]))
           AS sums (user_id, currency_code, version, charged_minor)
      JOIN accounts AS account USING (user_id, currency_code)
     WHERE account.charged_at_version < sums.version
     ORDER BY user_id, currency_code FOR NO KEY UPDATE OF account)
UPDATE accounts AS account
   SET charged_minor = older.charged_minor, charged_at_version = older.version
  FROM older
 WHERE account.user_id = older.user_id AND account.currency_code = older.currency_code
"""


def upgrade() -> None:
    execute(VALIDATE)
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        after = {"user_id": "", "currency_code": ""}
        while found := connection.execute(sa.text(SUMS), {**after, "size": ACCOUNTS_AT_ONCE}).all():
            behind = [row for row in found if row.behind]
            parameters = {
                "user_ids": [row.user_id for row in behind],
                "currency_codes": [row.currency_code for row in behind],
                "versions": [row.version for row in behind],
                "charged": [row.charged_minor for row in behind],
            }
            connection.execute(sa.text(WRITE), parameters)
            after = {"user_id": found[-1].user_id, "currency_code": found[-1].currency_code}
