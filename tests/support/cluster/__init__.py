"""Runs a rendered Kubernetes overlay as local processes.

It simulates the kubelet (probes, restarts, termination), the Deployment controller (scaling,
rolling restarts), Services (endpoints, DNS, a proxy) and Jobs. Containers run as the manifest's
user, if root runs the tests, and write to their emptyDir volumes only, if the kernel has Landlock
(confine.py). It does not simulate resource limits, the rest of security contexts, network policies
or the scheduler.
"""

from deploy.local.plan import PROJECT
from tests.support.cluster.changes import Changes
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.deployments import ClusterError
from tests.support.cluster.manifest import ManifestError, load
from tests.support.cluster.pods import Pod

OVERLAY = PROJECT / "deploy/kubernetes/rendered/multi-replica-test.yaml"
"""The overlay for tests."""

__all__ = ["OVERLAY", "Changes", "Cluster", "ClusterError", "ManifestError", "Pod", "load"]
