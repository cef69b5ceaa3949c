"""The release of the manifests: the version in pyproject.toml, copied to three files.

The tag of the images and the version label are the version itself. The names of the migration Jobs
have dashes for dots, since the name of a Job becomes part of host names.
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
"""The text before the release, by file."""


def number() -> str:
    """The project's version."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def texts() -> dict[str, str]:
    """The files with the current release. Raises ManifestsError if a file has no line for it."""
    found = {}
    release = number()
    for name, place in PLACES.items():
        value = release.replace(".", "-") if name == "job-names.yaml" else release
        text = (FOLDER / name).read_text(encoding="utf-8")
        found[name], places = re.subn(place, rf"\g<1>{value}", text)
        if not places:
            raise ManifestsError(f"release/{name}: no line for the release")
    return found


def drift() -> list[str]:
    """A message for each file with another release than pyproject.toml."""
    return [
        f"release/{name} is not of release {number()}: run `make manifests`"
        for name, text in texts().items()
        if (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def write() -> None:
    """Write the current release into the files."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
