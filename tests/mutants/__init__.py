"""Planted bugs: small patches, each of which the tests named beside it must catch.

``python -m tests.mutants`` applies them one after another to copies of the project and prints the
table. A patch is data, so that a change of the code that it no longer fits is found at once: by
``tests/unit/test_mutants.py``.
"""
