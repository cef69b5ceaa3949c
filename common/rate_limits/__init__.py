"""Limits of a user's calls, over all replicas: below its share a replica decides alone."""
