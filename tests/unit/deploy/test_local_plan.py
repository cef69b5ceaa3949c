"""The ports of a local stack, and the names that it prints."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT, SERVICES, Backends, Plan, replica_environment
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.tour import grpcurl_lines

NAMES = re.compile(r'"(user_id|request_id|payment_key)": "([^"]+)"')


@pytest.mark.parametrize(
    ("options", "balance", "payment"),
    [
        pytest.param({}, [50061, 50161], [50064, 50164], id="10 above the gRPC ports"),
        pytest.param({"base_port": 60050}, [60061, 60161], [60064, 60164], id="another base"),
        pytest.param({"metrics_port": 9400}, [9401, 9501], [9404, 9504], id="a base of their own"),
    ],
)
def test_metrics_ports(options: dict[str, Any], balance: list[int], payment: list[int]) -> None:
    plan = Plan(replicas=2, **options)
    for service, ports in (("balance", balance), ("payment", payment)):
        assert plan.metrics_addresses(service) == [f"127.0.0.1:{port}" for port in ports]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"metrics_port": 50050}, r"metrics port must leave port 50051 to another server"),
        ({"metrics_port": 50053}, r"metrics port must leave port 50054 to another server"),
        ({"metrics_port": 65535}, r"metrics port .* the last port \(65639\) at most 65535"),
        ({"metrics_port": 80}, r"metrics port must be at least 1024"),
        ({"base_port": 65530}, r"base port must be at least 1024 and the last port .* at most"),
    ],
)
def test_bad_port_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RunnerError, match=complaint):
        Plan(replicas=2, **options)


def test_metrics_port_of_the_environment_gives_no_two_replicas_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALLY_METRICS_PORT", "9400")
    plan = Plan(replicas=2, metrics_port=9400)
    urls = ServiceUrls(owner="owner", runtime="runtime", audit="audit")
    backends = Backends(dict.fromkeys(SERVICES, urls), "", "", "")
    ports = {
        replica_environment(plan, service, replica, backends)[
            f"TALLY_{service.upper()}_METRICS_PORT"
        ]
        for service in SERVICES
        for replica in range(plan.replicas)
    }
    assert len(ports) == 8


def test_printed_commands_share_no_name_with_the_tour_of_the_readme() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    plan = Plan()
    addresses = {service: plan.addresses(service) for service in SERVICES}
    printed = "\n".join(grpcurl_lines(addresses))
    names = [name for _, name in NAMES.findall(printed)]
    assert len(names) >= 15
    assert {*names}.isdisjoint(name for _, name in NAMES.findall(readme))
