"""A payment gateway to run Tally against: Toss Payments' protocol, with a durable record.

It is the far side of a network and shares no code with the services. The payment key's prefix
chooses what happens to a confirm call (see ``rules``); everything else is charged.
"""
