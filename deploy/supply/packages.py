"""The packages of each image: from its lock, and from the metadata of what is installed here."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT

REQUIREMENTS: Final = PROJECT / "requirements"
LOCKS: Final = {"tally": "runtime.txt", "tally-simulator": "simulator.txt"}
"""The lock of each image, in ``requirements``."""
IN_THE_IMAGE: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.14",
    "python_version": "3.11",
    "sys_platform": "linux",
}
"""What the locks' markers are compared with: the Dockerfile's base, not this machine."""
_VIA: Final = re.compile(r"^\s+#\s+(?:via\s+)?(?P<name>-[rc] \S+|[A-Za-z0-9][\w.-]*)$")


@dataclass(frozen=True)
class Package:
    """A package of a lock."""

    name: str
    """Normalized (PEP 503)."""
    version: str
    used_by: frozenset[str]
    """The packages that need it."""
    is_direct: bool = False
    """Whether the project itself names it, which others may need as well."""

    def metadata(self) -> importlib.metadata.PackageMetadata:
        """Its own description. Raises RunnerError if it is not installed in this version."""
        try:
            distribution = importlib.metadata.distribution(self.name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        else:
            if distribution.version == self.version:
                return distribution.metadata
            found = distribution.version
        raise RunnerError(
            f"{self.name} is {found} here, and {self.version} in the lock: run `make setup`"
        )


def packages(lock: str) -> list[Package]:
    """The packages that a lock installs in an image, in the order of their names."""
    return parsed((REQUIREMENTS / lock).read_text(encoding="utf-8"))


def parsed(text: str) -> list[Package]:
    """The packages of a lock's text, as uv writes it."""
    found: dict[str, tuple[str, set[str]]] = {}
    users: set[str] = set()
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            requirement = Requirement(line.rstrip("\\ "))
            users = set()
            if requirement.marker is None or requirement.marker.evaluate(IN_THE_IMAGE):
                [pin] = requirement.specifier
                found[canonicalize_name(requirement.name)] = (pin.version, users)
        elif via := _VIA.match(line):
            users.add(via["name"])
    return [
        Package(
            name,
            version,
            frozenset(users & found.keys()),
            is_direct=any(one.startswith("-r ") for one in users),
        )
        for name, (version, users) in sorted(found.items())
    ]


def locks() -> list[Path]:
    """Every lock, also of what only this machine needs."""
    return sorted(REQUIREMENTS.glob("*.txt"))
