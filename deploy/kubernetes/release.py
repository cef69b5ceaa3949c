"""The release that the manifests roll out: pyproject.toml's number, written where it is needed.

The images' tag and the version label carry it as it is; the names of the migration Jobs with dashes
for dots, since a Job's name becomes part of host names.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

from deploy.kubernetes.manifests import DIRECTORY, ManifestsError
from deploy.local.plan import PROJECT

FOLDER: Final = DIRECTORY / "release"
PLACES: Final = {
    "kustomization.yaml": r"(?m)^(    newTag: ).*$",
    "job-names.yaml": r"(?m)^(suffix: -).*$",
    "version-labels.yaml": r"(?m)^(  app\.kubernetes\.io/version: ).*$",
}
"""What stands before the release, by file."""


def number() -> str:
    """The project's version."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def texts() -> dict[str, str]:
    """The files as they have to be. Raises ManifestsError if one has no place for the release."""
    found = {}
    release = number()
    for name, place in PLACES.items():
        told = release.replace(".", "-") if name == "job-names.yaml" else release
        text = (FOLDER / name).read_text(encoding="utf-8")
        found[name], places = re.subn(place, rf"\g<1>{told}", text)
        if not places:
            raise ManifestsError(f"release/{name}: no line for the release")
    return found


def drift() -> list[str]:
    """The files that name another release than pyproject.toml."""
    return [
        f"release/{name} is not of release {number()}: run `make manifests`"
        for name, text in texts().items()
        if (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def write() -> None:
    """Make the files name the project's version."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
