"""The licences of the packages that the images contain; a licence that is not accepted is refused.

A package says its licence in one of three places of its metadata, two of them in free words. What
cannot be read as SPDX is an error, until a person has looked and added it here.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata
from typing import Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from deploy.local.errors import RunnerError
from deploy.supply.packages import LOCKS, Package, packages

ACCEPTED: Final = frozenset(
    {
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "LicenseRef-Public-Domain",
        "MIT",
        "MIT-0",
        "PSF-2.0",
    }
)
"""Licences that an image under Apache-2.0 may contain, unchanged and with their notices."""
IN_SPDX: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "Public Domain": "LicenseRef-Public-Domain",
}
"""The field ``License`` of packages that have no SPDX expression yet."""
_OPERATORS: Final = frozenset({"AND", "OR", "WITH"})
_INTRODUCTION: Final = """\
<!-- Written by `make docs` from the locks and the packages' metadata. Do not edit. -->

# Licences of the packages in the images

Tally is under the [Apache License 2.0](../LICENSE). Its images contain the following packages, as
their authors publish them, with their licences' texts in their `*.dist-info` directories.
`make check` fails for a package whose licence is not in the list of `deploy/supply/licences.py`.
What only a developer's machine has is not listed: it is not distributed.

"""


def licence_of(package: Package) -> str:
    """The package's licence, an SPDX expression. Raises RunnerError."""
    return licence_in(package.metadata(), package.name)


def licence_in(metadata: PackageMetadata, name: str) -> str:
    """The licence that the metadata of the package ``name`` have. Raises RunnerError."""
    fields = [field for field in ("License-Expression", "License") if field in metadata]
    said = metadata[fields[0]] if fields else ""
    expression = IN_SPDX.get(said, said)
    try:
        expression = canonicalize_license_expression(expression)
    except InvalidLicenseExpression:
        raise RunnerError(
            f"the licence of {name} is not SPDX: {said[:60]!r}; look it up, and add it to IN_SPDX"
            " of deploy/supply/licences.py"
        ) from None
    parts = set(re.split(r"[\s()]+", expression)) - _OPERATORS - {""}
    if not parts <= ACCEPTED:
        raise RunnerError(
            f"the licence of {name} is not accepted: {expression}; use another package, or add it"
            " to ACCEPTED of deploy/supply/licences.py"
        )
    return expression


def page() -> str:
    """The whole page, as it has to be. Raises RunnerError."""
    licences: dict[str, str] = {}
    images: dict[str, list[str]] = {}
    for image, lock in LOCKS.items():
        for package in packages(lock):
            licences[package.name] = licence_of(package)
            images.setdefault(package.name, []).append(f"`{image}`")
    rows = ["| package | licence | image |", "|---|---|---|"]
    rows += [
        f"| {name} | {licence.removeprefix('LicenseRef-')} | {', '.join(images[name])} |"
        for name, licence in sorted(licences.items())
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n"
