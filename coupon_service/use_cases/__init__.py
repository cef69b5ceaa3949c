"""The coupon service's writes, decided batch by batch, and its reads."""
