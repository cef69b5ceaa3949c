"""Replicas come, go and die under load: the short form of tests/replicas."""
