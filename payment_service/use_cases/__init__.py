"""What the payment service does: the calls and reads, the decisions, the work at the gateway."""
