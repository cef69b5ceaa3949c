"""Replicas added, replaced and killed under load, four of each service: `make test-replicas`."""
