"""What the payment service does.

- ``payment``: the calls, from the claim over the gateway to the response, and the reads;
- ``decider``: the writes, decided batch by batch in one lane;
- ``resolver``: the work at the gateway on payments that are open.
"""
