"""The balance service's book: accounts, their entries, and what was answered about them."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure

FIGURES: Final = (
    Figure(
        "I1",
        "{currency_code} {available:,} in {accounts:,} accounts",
        """
SELECT currency_code, sum(available_minor) AS available, count(*) AS accounts
  FROM accounts GROUP BY currency_code ORDER BY currency_code
""",
    ),
    Figure(
        "I2",
        "{accounts:,} accounts, {entries:,} entries, {refunds:,} of them refunds",
        """
SELECT (SELECT count(*) FROM accounts) AS accounts, count(*) AS entries,
       count(*) FILTER (WHERE kind = 'REFUND') AS refunds
  FROM ledger_entries
""",
    ),
    Figure(
        "I3",
        "{currency_code} {charged:,} charged = {available:,} left + {spent:,} spent",
        """
SELECT currency_code, coalesce(charged, 0) AS charged, coalesce(available, 0) AS available,
       coalesce(spent, 0) AS spent
  FROM (SELECT currency_code, sum(amount_minor) FILTER (WHERE kind = 'CHARGE') AS charged,
               -sum(amount_minor) FILTER (WHERE kind <> 'CHARGE') AS spent
          FROM ledger_entries GROUP BY currency_code) AS entered
  FULL JOIN (SELECT currency_code, sum(available_minor) AS available
               FROM accounts GROUP BY currency_code) AS held USING (currency_code)
 ORDER BY currency_code
""",
    ),
    Figure(
        "I8",
        "{answers:,} answers about balances",
        "SELECT count(*) AS answers FROM answers",
    ),
)

_SUMS = Check(
    "I1",
    "sum of the currency",
    """
SELECT currency_code AS key,
       format('%s: balances add up to %s, entries to %s', currency_code,
              coalesce(held.total, 0), coalesce(entered.total, 0)) AS told
  FROM (SELECT currency_code, sum(available_minor) AS total
          FROM accounts GROUP BY currency_code) AS held
  FULL JOIN (SELECT currency_code, sum(amount_minor) AS total
               FROM ledger_entries GROUP BY currency_code) AS entered USING (currency_code)
 WHERE coalesce(held.total, 0) <> coalesce(entered.total, 0)
""",
)

_ACCOUNTS = Check(
    "I2",
    "account",
    """
SELECT user_id || ' ' || currency_code AS key,
       format('account of %s in %s: %s', user_id, currency_code, concat_ws(', ',
           CASE WHEN a.available_minor IS NULL THEN 'has entries and does not exist' END,
           CASE WHEN a.available_minor < 0 THEN format('balance %s', a.available_minor) END,
           CASE WHEN a.available_minor <> coalesce(e.total, 0)
                THEN format('balance %s, sum of its entries %s',
                            a.available_minor, coalesce(e.total, 0)) END,
           CASE WHEN a.available_minor <> coalesce(last.balance_after_minor, 0)
                THEN format('balance %s, after the last entry %s',
                            a.available_minor, coalesce(last.balance_after_minor, 0)) END,
           CASE WHEN e.entries <> e.highest OR e.lowest <> 1
                THEN format('%s entries numbered %s to %s', e.entries, e.lowest, e.highest) END,
           CASE WHEN a.version <> coalesce(e.highest, 0)
                THEN format('version %s, last entry %s', a.version, coalesce(e.highest, 0)) END
       )) AS told
  FROM accounts AS a
  FULL JOIN (SELECT user_id, currency_code, sum(amount_minor) AS total, count(*) AS entries,
                    min(sequence) AS lowest, max(sequence) AS highest
               FROM ledger_entries GROUP BY user_id, currency_code) AS e
 USING (user_id, currency_code)
  LEFT JOIN (SELECT user_id, currency_code, sequence AS highest, balance_after_minor
               FROM ledger_entries) AS last
 USING (user_id, currency_code, highest)
 WHERE a.available_minor IS NULL OR a.available_minor < 0
    OR a.available_minor <> coalesce(e.total, 0)
    OR a.available_minor <> coalesce(last.balance_after_minor, 0)
    OR e.entries <> e.highest OR e.lowest <> 1 OR a.version <> coalesce(e.highest, 0)
""",
)

_RUNNING_SUMS = Check(
    "I2",
    "running sum",
    """
SELECT user_id || ' ' || currency_code || ' ' || lpad(sequence::text, 19, '0') AS key,
       format('account of %s in %s: after entry %s (%s) the balance is told as %s, it was %s',
              user_id, currency_code, sequence, amount_minor, balance_after_minor,
              before_minor) AS told
  FROM (SELECT *, coalesce(lag(balance_after_minor) OVER (
                      PARTITION BY user_id, currency_code ORDER BY sequence), 0) AS before_minor
          FROM ledger_entries) AS entry
 WHERE balance_after_minor <> before_minor + amount_minor OR balance_after_minor < 0
""",
)

_REFUNDS = Check(
    "I2",
    "refund",
    """
SELECT r.entry_id::text AS key,
       format('refund of %s by %s in %s: deduction %s', r.amount_minor, r.user_id,
              r.currency_code, CASE
           WHEN d.entry_id IS NULL THEN format('%s is not in the ledger', r.refund_of)
           WHEN r.times > 1 THEN format('%s is refunded %s times', r.refund_of, r.times)
           ELSE format('%s was %s in %s', r.refund_of, d.amount_minor, d.currency_code) END) AS told
  FROM (SELECT *, count(*) OVER (PARTITION BY user_id, refund_of) AS times
          FROM ledger_entries WHERE kind = 'REFUND') AS r
  LEFT JOIN ledger_entries AS d
    ON d.user_id = r.user_id AND d.request_id = r.refund_of AND d.kind = 'DEDUCT'
 WHERE d.entry_id IS NULL OR r.times > 1 OR d.amount_minor <> -r.amount_minor
    OR d.currency_code <> r.currency_code OR d.order_id IS DISTINCT FROM r.order_id
""",
)

_SPENT = Check(
    "I3",
    "charged in the currency",
    """
SELECT currency_code AS key,
       format('%s: charged %s, but %s are left and %s spent', currency_code,
              coalesce(charged, 0), coalesce(available, 0), coalesce(spent, 0)) AS told
  FROM (SELECT currency_code, sum(amount_minor) FILTER (WHERE kind = 'CHARGE') AS charged,
               -sum(amount_minor) FILTER (WHERE kind <> 'CHARGE') AS spent
          FROM ledger_entries GROUP BY currency_code) AS entered
  FULL JOIN (SELECT currency_code, sum(available_minor) AS available
               FROM accounts GROUP BY currency_code) AS held USING (currency_code)
 WHERE coalesce(charged, 0) <> coalesce(available, 0) + coalesce(spent, 0)
""",
)

_ANSWERED = Check(
    "I8",
    "answer about a balance",
    """
SELECT concat_ws(' ', a.method, a.scope, a.request_id) AS key,
       format('%s %s of %s: %s', a.method, a.request_id, a.scope, CASE
           WHEN a.state = 'ANSWERED' AND e.entry_id IS NULL THEN 'answered, and not in the ledger'
           WHEN a.state = 'ANSWERED' AND r.entry_id IS NOT NULL
           THEN 'answered, and refunded without being cancelled'
           WHEN a.state = 'ANSWERED'
           THEN format('answered as entry %s of %s, entered as %s of %s',
                       told ->> 'sequence', told ->> 'amount_minor', e.sequence, e.amount_minor)
           ELSE format('%s, yet entered as %s of %s', lower(a.state), e.sequence, e.amount_minor)
       END) AS told
  FROM (SELECT *, body::jsonb AS told FROM answers
         WHERE method IN ('ChargeBalance', 'DeductBalance')) AS a
  LEFT JOIN ledger_entries AS e
    ON e.user_id = a.scope AND e.request_id = a.request_id
   AND e.kind = CASE a.method WHEN 'ChargeBalance' THEN 'CHARGE' ELSE 'DEDUCT' END
  LEFT JOIN ledger_entries AS r
    ON r.user_id = a.scope AND r.refund_of = a.request_id AND r.refund_of IS NOT NULL
   AND a.method = 'DeductBalance'
 WHERE CASE WHEN a.state = 'ANSWERED'
            THEN e.entry_id IS NULL OR r.entry_id IS NOT NULL
                 OR told ->> 'entry_id' <> e.entry_id::text
                 OR told ->> 'sequence' <> e.sequence::text
                 OR told ->> 'amount_minor' <> e.amount_minor::text
                 OR told ->> 'balance_after_minor' <> e.balance_after_minor::text
            ELSE e.entry_id IS NOT NULL AND r.entry_id IS NULL END
""",
)

# A second refund of a deduction is answered with the first one's entry, so the entry decides, not
# the request. Where nothing had been deducted the answer is null.
_REFUND_ANSWERED = Check(
    "I8",
    "answer about a refund",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('RefundDeduction %s of %s: answered with entry %s, which is not in the ledger',
              a.request_id, a.scope, a.told ->> 'entry_id') AS told
  FROM (SELECT *, body::jsonb AS told FROM answers WHERE method = 'RefundDeduction') AS a
  LEFT JOIN ledger_entries AS r
    ON r.user_id = a.scope AND r.kind = 'REFUND' AND r.entry_id::text = a.told ->> 'entry_id'
   AND r.amount_minor::text = a.told ->> 'amount_minor'
 WHERE jsonb_typeof(a.told) <> 'null' AND r.entry_id IS NULL
""",
)

_ENTERED = Check(
    "I8",
    "entry",
    f"""
SELECT e.entry_id::text AS key,
       format('%s of %s by %s under %s: in the ledger, and its request is %s', e.kind,
              e.amount_minor, e.user_id, e.request_id,
              coalesce(lower(a.state), 'not answered')) AS told
  FROM ledger_entries AS e
  LEFT JOIN ledger_entries AS r
    ON r.user_id = e.user_id AND r.refund_of = e.request_id AND r.refund_of IS NOT NULL
   AND e.kind = 'DEDUCT'
  LEFT JOIN answers AS a
    ON a.scope = e.user_id AND a.request_id = e.request_id
   AND a.method = CASE e.kind WHEN 'CHARGE' THEN 'ChargeBalance' WHEN 'DEDUCT' THEN 'DeductBalance'
                              ELSE 'RefundDeduction' END
 WHERE CASE WHEN r.entry_id IS NOT NULL THEN a.state IS DISTINCT FROM 'CANCELLED'
            ELSE a.state IS NULL AND e.create_time > now() - {ANSWERS_KEPT} END
""",  # noqa: S608 - a constant
)

CHECKS: Final = (
    _SUMS,
    _ACCOUNTS,
    _RUNNING_SUMS,
    _REFUNDS,
    _SPENT,
    _ANSWERED,
    _REFUND_ANSWERED,
    _ENTERED,
)
