"""What the payment service does.

- ``decide``: the writes, decided batch by batch in one lane;
- ``resolver``: what is left to do at the gateway for payments without a final state;
- ``payments``: the calls, from the claim over the gateway to the answer, and the reads.
"""

from payment_service.use_cases.decide import Posted
from payment_service.use_cases.payments import Payments

__all__ = ["Payments", "Posted"]
