"""The audit: checks that the books of all services and of the gateway agree.

It is the only program that reads the databases of several services. It uses read-only roles and
one snapshot of each database. `python -m deploy.audit --help`.

sources.py      where the databases and the gateway's record are
snapshots.py    one read-only snapshot of each of them
checks.py       a check within one database: SQL that returns the rows that differ
balance.py coupon.py payment.py    those checks, by service
order.py order_sagas.py order_answers.py    the order service's
merge_join.py   two ordered streams, joined by key
claims.py       what each attempt to pay an order claims of the other services
participants.py what each service did for these attempts
sagas.py        the claims, compared with what each service did
gateway.py      payments, compared with the gateway's record
audit_pass.py   the differences that one pass finds
audit.py        all checks, repeated while a difference is unexplained
report.py       the result, as text and as JSON
"""
