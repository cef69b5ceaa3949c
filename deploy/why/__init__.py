"""Why is it so? Everything about one id, in order of time: `python -m deploy.why --help`.

It reads the databases of all services, as the audit does, by the read-only roles.

subject.py      what an id is, and whose
selection.py    which rows belong to it
order.py balance.py coupon.py payment.py    those rows, by service, and the events they tell of
event.py        one event
standing.py     how things stand now, and what to do next
report.py       the answer, as text and as JSON
"""
