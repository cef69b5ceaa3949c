"""A payment gateway simulator: the protocol of Toss Payments, over a durable record.

It stands for a system on the other side of a network and shares no code with the services. The
prefix of the payment key decides what a confirm call does (see ``rules``); other keys are charged.
"""
