"""Validates the renderings against the schemas of Kubernetes.

Validation is strict: an unknown field is an error. The API server would drop it without an error,
and a misspelt probe would be no probe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import kubernetes_validate
from kubernetes_validate.utils import all_versions, major_minor

from deploy.kubernetes.manifests import ManifestsError

VERSIONS: Final = ("1.31", "1.37")
"""The oldest version with every field in use, and the newest version with installed schemas."""

OPERATORS: Final = ("cert-manager.io", "external-secrets.io", "monitoring.coreos.com")
"""The API groups of operators that components need. Their objects are not validated: Kubernetes has
no schemas of them."""


def problems(objects: Iterable[dict[str, Any]], versions: Sequence[str] = VERSIONS) -> list[str]:
    """A line for each object that a version would refuse. Equal objects are checked once.

    Raises ManifestsError for a version without installed schemas.
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
        if each["apiVersion"].partition("/")[0] not in OPERATORS
        if (problem := _problem(each, version))
    ]


def _problem(each: dict[str, Any], version: str) -> str:
    where = f"{each['kind'].lower()}/{each['metadata']['name']}, Kubernetes {version}"
    try:
        kubernetes_validate.validate(each, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        return f"{where}: {path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{where}: there is no {each['kind']} in {each['apiVersion']}"
    return ""
