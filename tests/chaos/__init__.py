"""Kills of each process, followed by an audit of the books. Long: `make test-kills`."""
