"""Builds the client's wheel and sdist: the packages ``tally_client`` and ``tally`` (the stubs)."""
