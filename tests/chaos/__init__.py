"""Kills, and what the books say afterwards. Long: `make test-kills`."""
