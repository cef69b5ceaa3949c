"""The payment service's writes, decided batch by batch, its reads, and the work at the gateway."""
