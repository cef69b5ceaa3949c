"""Replicas come, go and die under load, four of each service. Long: `make test-replicas`."""
