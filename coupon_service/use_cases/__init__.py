"""What the coupon service does: the writes, each decided batch by batch in its lane; the reads."""
