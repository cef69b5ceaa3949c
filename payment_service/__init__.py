"""Payments through an outside gateway: a key pays at most once, and no outcome is guessed."""
