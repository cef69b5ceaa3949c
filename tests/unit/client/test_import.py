"""The client runs in other people's processes: what it loads and changes there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires

NAMED_IN_THE_GUIDE = ("grpcio", "grpcio-status", "uuid-utils")
# grpc imports these by itself where they are installed.
OPTIONAL = {"grpc_health", "grpc_reflection", "grpc_tools", "grpc_channelz"}
OURS = {"tally_client", "common", "protos", "tally", "buf"}


def test_it_loads_what_the_guide_says_and_nothing_that_only_the_services_need() -> None:
    program = "import sys, tally_client; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    by_start = subprocess.run(
        [sys.executable, "-c", program.replace("tally_client", "sys")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(ended.stdout.split()) - set(by_start.stdout.split()) - sys.stdlib_module_names
    assert loaded >= OURS
    providers = packages_distributions()
    others = loaded - OURS - OPTIONAL
    needed = {canonical(name) for module in others for name in providers.get(module, ())}
    assert needed <= closure(NAMED_IN_THE_GUIDE)


def closure(named: Iterable[str]) -> set[str]:
    """The distributions of these names, and what they require."""
    found: set[str] = set()
    fresh = {canonical(name) for name in named}
    while fresh:
        found |= fresh
        required = (line for name in fresh for line in requires(name) or ())
        # Without those of extras, which nobody asked for.
        names = {
            re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
            for line in required
            if "extra ==" not in line
        }
        fresh = {canonical(name) for name in names} - found
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
