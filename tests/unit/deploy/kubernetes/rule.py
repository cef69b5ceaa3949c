"""What a rule is: a function that tells an overlay's faults, each with the object's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tests.unit.deploy.kubernetes.manifests import Overlay

Rule = Callable[[Overlay], Iterator[str]]

RULES: Final[dict[str, Rule]] = {}


def rule(function: Rule) -> Rule:
    """Make the function a rule under its own name."""
    name = function.__name__
    assert name not in RULES
    RULES[name] = function
    return function
