"""What the client loads into the process of its user: only what its package requires."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from typing import Final

from deploy.package.client import HERE

REQUIRED: Final = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]
# grpc imports these by itself where they are installed.
OPTIONAL = {"grpc_health", "grpc_reflection", "grpc_status", "grpc_tools", "grpc_channelz"}
OURS = {"tally_client", "tally", "buf"}
"""The services' stubs import `buf.validate`; those of the package do not."""


def test_client_loads_only_packages_that_it_requires() -> None:
    loaded = packages_after("tally_client") - packages_after("sys") - sys.stdlib_module_names
    assert loaded >= OURS
    providers = packages_distributions()
    third_party = loaded - OURS - OPTIONAL
    needed = {canonical(name) for module in third_party for name in providers.get(module, ())}
    assert needed <= closure(map(name_of, REQUIRED))


def test_each_required_package_has_a_range_and_no_pin() -> None:
    for requirement in REQUIRED:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+,<\d+", requirement)


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
        new = {canonical(name_of(line)) for line in required} - found
    return found


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
