"""The demo: a flash sale on a fresh stack, with everything going wrong that can, then the audit.

script.py     who buys what, how it is paid, what goes wrong: the table to read first
customers.py  one customer's way through the sale, through the public gRPC API only
shop.py       the services as a client meets them: a call is repeated under its own request_id
trouble.py    the replica that is killed, and the watch over all the others
findings.py   what the services say afterwards
checks.py     what must be true then
"""
