"""The PrometheusRule of the component ``prometheus``: the text of deploy/monitoring/rules.

Kustomize reads no file outside its own directories, so the object is written from the rule files
and committed, as the renderings are.
"""

from __future__ import annotations

from typing import Final

from deploy.kubernetes.manifests import DIRECTORY
from deploy.local.plan import PROJECT

RULES: Final = PROJECT / "deploy/monitoring/rules"
FILE: Final = DIRECTORY / "components/prometheus/rules.yaml"
_HEAD: Final = """\
# Written by `make manifests` from deploy/monitoring/rules. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tally
  labels:
    app.kubernetes.io/name: tally
    app.kubernetes.io/component: monitoring
    # Set here, since an overlay that builds on another one does not add these labels.
    app.kubernetes.io/part-of: tally
    app.kubernetes.io/managed-by: kustomize
spec:
  groups:
"""
_GROUPS: Final = "groups:\n"


def text() -> str:
    """The object, as it has to be: the groups of every rule file, in the order of their names."""
    groups = ""
    for file in sorted(RULES.glob("*.yaml")):
        _, _, rest = file.read_text(encoding="utf-8").partition(_GROUPS)
        groups += "".join(f"  {line}" if line.strip() else line for line in rest.splitlines(True))
    return _HEAD + groups


def drift() -> list[str]:
    """A message if the committed object is another one."""
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == text():
        return []
    return ["components/prometheus/rules.yaml is not what deploy/monitoring/rules says"]


def write() -> None:
    """Write the object."""
    FILE.write_text(text(), encoding="utf-8")
