"""Rules about probes: the service and port they call, and how soon they act."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    LASTING,
    SERVERS,
    UNSET,
    Check,
    Rule,
    at_least,
    bad,
    between,
    equal,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import GONE, PORTS, Item

STARTUP, READINESS, LIVENESS = (
    f"container.{each}Probe" for each in ("startup", "readiness", "liveness")
)
HOW: Final = ("grpc", "tcpSocket", "httpGet")
PROBES: Final = (STARTUP, READINESS, LIVENESS)
POSTGRES, REDIS = "StatefulSet/postgres", "StatefulSet/redis"


def acts_after_s(each: Item, probe: str) -> int:
    """The seconds of failures until the kubelet acts, with Kubernetes' defaults."""
    return int(each.get(f"{probe}.periodSeconds", 10) * each.get(f"{probe}.failureThreshold", 3))


def seconds_to_start(each: Item) -> int:
    return acts_after_s(each, STARTUP)


def seconds_until_not_ready(each: Item) -> int:
    return acts_after_s(each, READINESS)


def seconds_until_restarted(each: Item) -> int:
    return acts_after_s(each, LIVENESS)


probes_of_servers_are_grpc = Rule(
    "The health service knows more than an open port does. Readiness is the state of the server"
    " (''); liveness that of the event loop alone, for a restart does not mend a database.",
    SERVERS,
    Check(f"{STARTUP}.grpc.service", "liveness", bad("")),
    Check(f"{LIVENESS}.grpc.service", "liveness", bad("")),
    Check(f"{READINESS}.grpc.service", equal("", default=""), bad("liveness")),
    *(
        Check(
            f"{probe}.grpc.port",
            lambda each: PORTS[each.service],
            bad(50051),
            bad({"tcpSocket": {"port": 50053}}, probe),
        )
        for probe in PROBES
    ),
)


@rule(
    LASTING,
    *(bad(GONE, probe, REDIS) for probe in PROBES),
    bad("grpc", f"{LIVENESS}.grpc.port"),
    bad(1, f"{READINESS}.tcpSocket.port", REDIS),
)
def everything_that_lasts_is_probed(each: Item) -> Iterator[str]:
    """On a declared port: a gRPC probe takes no name of a port, and a closed port always fails."""
    for probe in PROBES:
        if not all(each.values(probe)):
            yield f"has no {probe}"
        for port in filter(None, (each.get(f"{probe}.{how}.port") for how in HOW)):
            if port not in each.ports.values():
                yield f"port {port}, which {probe} calls, is not declared"


probes_allow_for_a_busy_node = Rule(
    "A throttled process takes longer to start and to answer.",
    LASTING,
    *(Check(f"{probe}.timeoutSeconds", at_least(2, default=1), bad(GONE)) for probe in PROBES),
    Check(seconds_to_start, at_least(30), bad(3, f"{STARTUP}.failureThreshold")),
)

probes_act_in_time = Rule(
    "Readiness acts within seconds and liveness after about a minute, neither at one failure.",
    LASTING,
    # Sooner, and one slow answer takes a replica out of DNS; later, and clients call it too long.
    Check(
        seconds_until_not_ready,
        between(5, 15),
        bad(6, f"{READINESS}.failureThreshold"),
        bad(1, f"{READINESS}.periodSeconds"),
    ),
    # Sooner, and a busy node kills what works; later, and what hangs keeps its place too long.
    Check(
        seconds_until_restarted,
        between(45, 90),
        bad(2, f"{LIVENESS}.failureThreshold"),
        bad(100, f"{LIVENESS}.periodSeconds"),
    ),
    *(
        check
        for probe in (READINESS, LIVENESS)
        for check in (
            Check(f"{probe}.failureThreshold", at_least(2, default=3), bad(1, on=POSTGRES)),
            # The startup probe already waits for a process that starts.
            Check(f"{probe}.initialDelaySeconds", UNSET, bad(60)),
        )
    ),
)


@rule(LASTING, *(bad(15, f"{probe}.timeoutSeconds") for probe in (READINESS, LIVENESS)))
def probes_do_not_overlap(each: Item) -> Iterator[str]:
    """A probe that waits for longer than its period would still run at the next one."""
    for probe in (READINESS, LIVENESS):
        if each.get(f"{probe}.timeoutSeconds", 1) > each.get(f"{probe}.periodSeconds", 10):
            yield f"{probe} waits into its next period"
