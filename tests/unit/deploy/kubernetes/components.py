"""An overlay with a component taken in, as the guide says: by a line in its kustomization."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest
import yaml

from deploy.kubernetes import manifests, rendering
from tests.unit.deploy.kubernetes.manifests import Overlay

KUBECTL: Final = rendering.kubectl()
needs_kubectl: Final = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def with_component(overlay: str, component: str, directory: Path, **files: str) -> Overlay:
    """Rendered from a copy in ``directory``; ``files`` are put beside the component's."""
    copy = directory / "kubernetes"
    sources = shutil.ignore_patterns("rendered", "__pycache__", "*.py")
    shutil.copytree(manifests.DIRECTORY, copy, ignore=sources)
    for name, text in files.items():
        (copy / "components" / component / name.replace("_", ".")).write_text(text)
    file = copy / "overlays" / overlay / "kustomization.yaml"
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    told["components"] = [*told.get("components", []), f"../../components/{component}"]
    file.write_text(yaml.safe_dump(told), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "DIRECTORY", copy)
        text = rendering.render(str(KUBECTL), overlay)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Overlay(overlay, [each for each in yaml.load_all(text, loader) if each])
