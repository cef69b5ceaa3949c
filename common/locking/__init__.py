"""Locking strategies, and the locks and marks that Redis holds."""
