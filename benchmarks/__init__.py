"""Benchmarks and their reports: ratios within one run, never absolute times."""
