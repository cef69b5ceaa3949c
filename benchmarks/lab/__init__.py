"""The strategy lab: the same races under each locking strategy, on real servers, audited."""
