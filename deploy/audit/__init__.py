"""The audit: proves that the books of all services, and the gateway's, say the same.

It is the one program that looks across services, by read-only roles and in one snapshot of each
database. `python -m deploy.audit --help`.

sources.py     where the books are
snapshots.py   one look at all of them, and what keeps it from looking
checks.py      checks inside one database: SQL that names the rows that differ
ledger.py coupons.py orders.py payments.py    those checks, by service
merging.py     two ordered streams side by side
sagas.py       what each order claims against what each service did for it
gateway.py     payments against the gateway's own record
look.py        what was seen in one look, and what is left of it after several
audit.py       all of it, looked at again while something is unexplained
"""
