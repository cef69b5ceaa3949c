"""Clients of a running cluster, what they do to it, and what must then be so."""
