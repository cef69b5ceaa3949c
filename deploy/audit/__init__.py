"""The audit: checks that the books of all services and of the gateway agree.

It is the only program that reads the databases of several services. It uses read-only roles and
one snapshot of each database. `python -m deploy.audit --help`; docs/guides/audit.md.

command.py      one audit, and its report
serve.py        one audit after another, in production
settings.py schedule.py runs.py checkpoint.py metrics.py    what serving needs
sources.py      where the databases and the gateway's side are
snapshots.py    one read-only snapshot of each of them
units.py        a part of a book: all users, products and campaigns that were touched since a time
checks.py       a check within one database: SQL that returns the rows that differ
balance.py coupon.py payment.py    those checks, by service
order.py order_sagas.py order_answers.py    the order service's
merge_join.py   two ordered streams, joined by key
parts.py        the users that one comparison between two books covers
claims.py       what each attempt to pay an order claims of the other services
participants.py what each service did for these attempts
sagas.py        the claims, compared with what each service did
gateway.py      payments, compared with the gateway's side
gateway_records.py gateway_api.py    that side: the simulator's record, or look-ups by key
audit_pass.py   the differences that one pass finds
audit.py        all checks, repeated while a difference is unexplained
invariants.py   the invariants, in words
report.py       the result, and its JSON
table.py        the result as a table
"""
