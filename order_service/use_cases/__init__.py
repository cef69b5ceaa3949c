"""What the order service does: the writes, decided batch by batch, and the reads."""
