"""Replicas added, replaced and killed under load: the short form of tests/replicas."""
