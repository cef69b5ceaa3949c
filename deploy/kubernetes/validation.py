"""Whether a cluster would take the renderings: strict validation by Kubernetes' own schemas.

Strict: a field that a kind does not have is an error. The API server would drop it in silence, and
a misspelt probe would be no probe.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import kubernetes_validate
from kubernetes_validate.utils import all_versions, major_minor

from deploy.kubernetes.manifests import ManifestsError, told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSIONS: Final = ("1.31", "1.37")
"""The oldest Kubernetes that knows all that is used, and the newest whose schemas are at hand."""


def problems(objects: Iterable[dict[str, Any]], versions: Sequence[str] = VERSIONS) -> list[str]:
    """A line for each object that a version would refuse. Equal objects are looked at once.

    Raises ManifestsError for a version whose schemas are not at hand.
    """
    known = [major_minor(version) for version in all_versions()]
    for version in versions:
        if version not in known:
            raise ManifestsError(f"no schemas of Kubernetes {version}: {known[0]} to {known[-1]}")
    different = {json.dumps(each, sort_keys=True): each for each in objects}
    return [
        problem
        for version in versions
        for each in different.values()
        if (problem := _problem(each, version))
    ]


def _problem(each: dict[str, Any], version: str) -> str:
    where = f"{told(each)}, Kubernetes {version}"
    try:
        kubernetes_validate.validate(each, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        return f"{where}: {path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{where}: there is no {each['kind']} in {each['apiVersion']}"
    return ""
