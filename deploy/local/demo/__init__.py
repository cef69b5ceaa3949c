"""The demo: a flash sale on a fresh stack, with failures of every kind, and then the audit.

scenario.py      who buys what, how it is paid, what fails: the table to read first
customer.py      what one customer does, through the public gRPC API only
client.py        the customers' client: a call is repeated under its own request_id
results.py       what the customers' calls returned
watchdog.py      kills one replica, and watches all other processes
sale.py          the sale from start to end
final_state.py   what the services return afterwards
checks.py        what must be true then
report.py        the table of what happened
output.py        progress bars and lines
"""
