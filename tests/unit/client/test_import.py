"""What the client loads into the process of its user: only what the guide lists."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires

LISTED_IN_THE_GUIDE = ("grpcio", "grpcio-status", "uuid-utils")
# grpc imports these by itself where they are installed.
OPTIONAL = {"grpc_health", "grpc_reflection", "grpc_tools", "grpc_channelz"}
OURS = {"tally_client", "tally", "buf"}


def test_client_loads_only_packages_that_the_guide_lists() -> None:
    loaded = packages_after("tally_client") - packages_after("sys") - sys.stdlib_module_names
    assert loaded >= OURS
    providers = packages_distributions()
    third_party = loaded - OURS - OPTIONAL
    needed = {canonical(name) for module in third_party for name in providers.get(module, ())}
    assert needed <= closure(LISTED_IN_THE_GUIDE)


def packages_after(module: str) -> set[str]:
    """The top-level packages that a new process has loaded after it imported ``module``."""
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(ended.stdout.split())


def closure(names: Iterable[str]) -> set[str]:
    """The distributions of these names, and all that they require."""
    found: set[str] = set()
    new = {canonical(name) for name in names}
    while new:
        found |= new
        required = [line for name in new for line in requires(name) or () if "extra ==" not in line]
        new = {canonical(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in required}
        new -= found
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
