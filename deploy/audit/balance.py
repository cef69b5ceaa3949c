"""Checks of the balance service: accounts, their ledger entries, and the stored answers."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure, ServiceChecks, answers_figure
from deploy.audit.units import ANSWERED_SINCE, USER, Unit, answers_of_users
from tally.balance.v1 import balance_pb2

UNITS: Final = {
    # An account changes with an entry, and its times have no index.
    USER: Unit(
        f"""
SELECT user_id FROM ledger_entries WHERE create_time >= :since
 UNION SELECT scope FROM answers WHERE {ANSWERED_SINCE}
""",  # noqa: S608 - a constant
        {
            "accounts": "user_id = ANY ({ids})",
            "ledger_entries": "user_id = ANY ({ids})",
            "answers": answers_of_users(balance_pb2.DESCRIPTOR),
        },
    )
}

_CURRENCIES: Final = """
SELECT currency_code, coalesce(charged, 0) AS charged, coalesce(spent, 0) AS spent,
       coalesce(available, 0) AS available, coalesce(accounts, 0) AS accounts
  FROM (SELECT currency_code, sum(amount_minor) FILTER (WHERE kind = 'CHARGE') AS charged,
               -sum(amount_minor) FILTER (WHERE kind <> 'CHARGE') AS spent
          FROM ledger_entries GROUP BY currency_code) AS entries
  FULL JOIN (SELECT currency_code, sum(available_minor) AS available, count(*) AS accounts
               FROM accounts GROUP BY currency_code) AS balances USING (currency_code)
 ORDER BY currency_code
"""

FIGURES: Final = (
    Figure("I1", "{currency_code} {available:,} in {accounts:,} accounts", _CURRENCIES),
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
        _CURRENCIES,
    ),
    answers_figure("{answers:,} answers about balances"),
)

CHECKS: Final = (
    Check(
        "I1 I3",
        "sums of the currency",
        f"""
SELECT currency_code AS key,
       format('%s: balances add up to %s, entries to %s (%s charged, %s spent)', currency_code,
              available, charged - spent, charged, spent) AS difference
  FROM ({_CURRENCIES}) AS currencies
 WHERE available <> charged - spent
""",  # noqa: S608 - a constant
    ),
    Check(
        "I2",
        "account",
        """
SELECT user_id || ' ' || currency_code AS key,
       format('account of %s in %s: ', user_id, currency_code) || nullif(concat_ws(', ',
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
                THEN format('version %s, last entry %s', a.version, coalesce(e.highest, 0)) END,
           CASE WHEN a.charged_at_version = a.version AND a.charged_minor <> coalesce(e.charged, 0)
                THEN format('%s charged, sum of its charges %s',
                            a.charged_minor, coalesce(e.charged, 0)) END,
           CASE WHEN a.charged_at_version > a.version
                THEN format('charges summed at version %s of %s', a.charged_at_version, a.version)
                END,
           CASE WHEN a.update_time <> last.create_time
                THEN format('changed at %s, last entry at %s', a.update_time, last.create_time) END
       ), '') AS difference
  FROM accounts AS a
  FULL JOIN (SELECT user_id, currency_code, sum(amount_minor) AS total, count(*) AS entries,
                    sum(amount_minor) FILTER (WHERE kind = 'CHARGE') AS charged,
                    min(sequence) AS lowest, max(sequence) AS highest
               FROM ledger_entries GROUP BY user_id, currency_code) AS e
 USING (user_id, currency_code)
  LEFT JOIN (SELECT user_id, currency_code, sequence AS highest, balance_after_minor, create_time
               FROM ledger_entries) AS last
 USING (user_id, currency_code, highest)
""",
    ),
    Check(
        "I2",
        "running sum",
        """
SELECT user_id || ' ' || currency_code || ' ' || lpad(sequence::text, 19, '0') AS key,
       format('account of %s in %s: entry %s (%s) has %s as the balance after it, and %s as the'
              ' balance before it', user_id, currency_code, sequence, amount_minor,
              balance_after_minor, before_minor)
       || CASE WHEN create_time < before_time
          THEN format(', and came at %s, before the one before it at %s', create_time, before_time)
          ELSE '' END AS difference
  FROM (SELECT *, coalesce(lag(balance_after_minor) OVER entries, 0) AS before_minor,
               lag(create_time) OVER entries AS before_time
          FROM ledger_entries
        WINDOW entries AS (PARTITION BY user_id, currency_code ORDER BY sequence)) AS entry
 WHERE balance_after_minor <> before_minor + amount_minor OR balance_after_minor < 0
    OR create_time < before_time
    OR CASE kind WHEN 'DEDUCT' THEN amount_minor >= 0 ELSE amount_minor <= 0 END
    OR (kind = 'REFUND') <> (refund_of IS NOT NULL)
""",
    ),
    Check(
        "I2",
        "refund",
        """
SELECT r.entry_id::text AS key,
       format('refund of %s by %s in %s: deduction ', r.amount_minor, r.user_id, r.currency_code)
       || CASE
           WHEN d.entry_id IS NULL THEN format('%s is not in the ledger', r.refund_of)
           WHEN r.times > 1 THEN format('%s is refunded %s times', r.refund_of, r.times)
           WHEN d.amount_minor <> -r.amount_minor OR d.currency_code <> r.currency_code
                OR d.order_id IS DISTINCT FROM r.order_id
           THEN format('%s was %s in %s for order %s', r.refund_of, d.amount_minor,
                       d.currency_code, coalesce(d.order_id, 'none')) END AS difference
  FROM (SELECT *, count(*) OVER (PARTITION BY user_id, refund_of) AS times
          FROM ledger_entries WHERE kind = 'REFUND') AS r
  LEFT JOIN ledger_entries AS d
    ON d.user_id = r.user_id AND d.request_id = r.refund_of AND d.kind = 'DEDUCT'
""",
    ),
    Check(
        "I8",
        "entry and its answer",
        f"""
SELECT concat_ws(' ', kind, user_id, request_id) AS key,
       format('%s %s of %s: ', kind, request_id, user_id) || CASE
           WHEN entry_id IS NULL
           THEN CASE WHEN state = 'ANSWERED' AND kind <> 'REFUND'
                THEN 'answered, and not in the ledger' END
           WHEN is_refunded
           THEN CASE WHEN state IS DISTINCT FROM 'CANCELLED'
                THEN format('refunded, and its request is %s, not cancelled',
                            coalesce(lower(state), 'not answered')) END
           WHEN state IS NULL
           THEN CASE WHEN create_time > now() - {ANSWERS_KEPT}
                THEN format('in the ledger with %s, and not answered', amount_minor) END
           WHEN kind = 'REFUND' THEN NULL
           WHEN state <> 'ANSWERED'
           THEN format('%s, and in the ledger with %s', lower(state), amount_minor)
           WHEN NOT answer @> jsonb_build_object(
                    'entry_id', entry_id, 'account_id', jsonb_build_array(user_id, currency_code),
                    'sequence', sequence, 'kind', kind, 'amount_minor', amount_minor,
                    'balance_after_minor', balance_after_minor, 'request_id', request_id,
                    'order_id', order_id, 'refund_of', refund_of)
                OR (answer ->> 'create_time')::timestamptz <> create_time
           THEN format('answered as entry %s with %s, in the ledger as %s with %s: %s',
                       answer ->> 'sequence', answer ->> 'amount_minor', sequence, amount_minor,
                       answer)
       END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer,
               CASE method WHEN 'ChargeBalance' THEN 'CHARGE' WHEN 'DeductBalance' THEN 'DEDUCT'
                           ELSE 'REFUND' END AS kind
          FROM answers) AS a
  FULL JOIN ledger_entries AS e USING (user_id, request_id, kind)
  LEFT JOIN (SELECT DISTINCT user_id, 'DEDUCT' AS kind, refund_of AS request_id,
                             true AS is_refunded
               FROM ledger_entries WHERE refund_of IS NOT NULL) AS r
 USING (user_id, request_id, kind)
""",  # noqa: S608 - a constant
    ),
    # A second refund of a deduction is answered with the first one's entry, so the entry is
    # compared and not the request. If nothing had been deducted, the answer is null.
    Check(
        "I8",
        "answer about a refund",
        """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('RefundDeduction %s of %s: answered with entry %s, which is not in the ledger',
              a.request_id, a.scope, a.answer ->> 'entry_id') AS difference
  FROM (SELECT *, body::jsonb AS answer FROM answers WHERE method = 'RefundDeduction') AS a
  LEFT JOIN ledger_entries AS r
    ON r.user_id = a.scope AND r.kind = 'REFUND' AND r.refund_of = a.answer ->> 'refund_of'
   AND a.answer @> jsonb_build_object(
           'entry_id', r.entry_id, 'account_id', jsonb_build_array(r.user_id, r.currency_code),
           'sequence', r.sequence, 'kind', 'REFUND', 'amount_minor', r.amount_minor,
           'balance_after_minor', r.balance_after_minor, 'request_id', r.request_id,
           'order_id', r.order_id)
 WHERE jsonb_typeof(a.answer) <> 'null' AND r.entry_id IS NULL
""",
    ),
)

SERVICE: Final = ServiceChecks(CHECKS, FIGURES, UNITS)
