"""An overlay with other components, rendered from a copy of the sources."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest
import yaml

from deploy.kubernetes import manifests, rendering
from deploy.monitoring import grafana
from tests.unit.deploy.kubernetes.manifests import Object, Overlay, load, parse
from tests.unit.deploy.kubernetes.rules import RULES

KUBECTL: Final = rendering.kubectl()


def with_component(overlay: str, component: str, directory: Path, **files: str) -> Overlay:
    """An overlay with a component, the first one, rendered from a copy.

    ``files`` are added to the component.
    """
    own = components_of(overlay)
    return with_components(
        overlay, [f"../../components/{component}", *own], directory, {component: files}
    )


def components_of(overlay: str) -> list[str]:
    content = yaml.safe_load(kustomization(overlay).read_text(encoding="utf-8"))
    return list(content.get("components", []))


def kustomization(overlay: str) -> Path:
    return manifests.DIRECTORY / "overlays" / overlay / "kustomization.yaml"


def with_components(
    overlay: str, components: list[str], directory: Path, files: dict[str, dict[str, str]]
) -> Overlay:
    """An overlay with these components in place of its own; ``files`` are added to them."""
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    copy = directory / "kubernetes"
    sources = shutil.ignore_patterns("rendered", "__pycache__", "*.py")
    shutil.copytree(manifests.DIRECTORY, copy, ignore=sources)
    shutil.copytree(grafana.DIRECTORY, directory / "monitoring" / "dashboards")
    for component, texts in files.items():
        for name, text in texts.items():
            (copy / "components" / component / name.replace("_", ".")).write_text(text)
    file = copy / "overlays" / overlay / "kustomization.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) | {"components": components}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "DIRECTORY", copy)
        return parse(overlay, rendering.render(str(KUBECTL), overlay))


def faults(overlay: Overlay) -> dict[str, list[str]]:
    """The faults by rule, of the rules that do not hold."""
    found = {name: rule.faults(overlay) for name, rule in RULES.items()}
    return {name: of_rule for name, of_rule in found.items() if of_rule}


def changed(overlay: Overlay) -> list[Object]:
    """What the component adds and changes; `make check` validates the rest, which takes seconds."""
    committed = load(overlay.name).objects
    objects = [each for each in overlay.objects if each not in committed]
    assert objects
    return objects


def source(component: str, file: str) -> list[Object]:
    path = manifests.DIRECTORY / "components" / component / file
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


CERTIFICATES: Final = {
    each["metadata"]["name"]: each["spec"]
    for file in ("clients.yaml", "peers.yaml")
    for each in source("tls-cert-manager", file)
}
