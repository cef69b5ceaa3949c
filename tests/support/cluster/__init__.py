"""Runs a rendered Kubernetes overlay on one machine: what it says, as local processes.

It plays the kubelet (probes, restarts, the end of a pod), the Deployment controller (scaling,
rolling restarts), Services (endpoints, DNS, a proxy) and Jobs. Containers run as
the manifest's user, if root runs the tests, and write to their emptyDir volumes only, if the kernel
has Landlock (confine.py). It does not play what processes of one machine cannot have: resource
limits, the rest of security contexts, network policies, the scheduler.
"""

from deploy.local.plan import PROJECT
from tests.support.cluster.changes import Changes
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.deployments import ClusterError
from tests.support.cluster.manifest import ManifestError, load
from tests.support.cluster.pods import Pod

OVERLAY = PROJECT / "deploy/kubernetes/rendered/multi-replica-test.yaml"
"""The overlay that is meant to be run by tests."""

__all__ = ["OVERLAY", "Changes", "Cluster", "ClusterError", "ManifestError", "Pod", "load"]
