"""Faults in real processes: the crash matrix (`make test-crash`), outages (`make test-outages`)."""
