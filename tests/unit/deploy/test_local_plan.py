"""The ports of a local stack, and the names that it prints."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploy.local.errors import RunnerError
from deploy.local.monitors import planned_audit
from deploy.local.plan import (
    PROJECT,
    SERVICES,
    Backends,
    Plan,
    audit_environment,
    replica_environment,
)
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
    assert plan.metrics_page_port("audit") == payment[0] + 1


def test_only_an_audit_that_runs_has_a_page() -> None:
    plan = Plan(replicas=1)
    assert list(plan.metrics_pages()) == [*SERVICES]
    assert plan.metrics_pages(audit=True)["audit"] == ["127.0.0.1:50065"]


def no_databases(**urls: ServiceUrls) -> Backends:
    return Backends(urls, "", "", "")


@pytest.mark.parametrize(
    ("services", "named", "reported"),
    [
        pytest.param(SERVICES, no_databases(), [], id="the runner's own databases"),
        pytest.param(
            SERVICES,
            no_databases(coupon=ServiceUrls(owner="o", runtime="r", audit="")),
            ["no audit: TALLY_COUPON_AUDIT_DATABASE_URL is not set"],
            id="a database whose audit role is not known",
        ),
        pytest.param(
            ("balance", "order", "payment"),
            no_databases(),
            ["no audit: the stack has no coupon service"],
            id="a checkout without a service",
        ),
    ],
)
def test_audit_runs_if_it_can_read_all_books(
    services: tuple[str, ...], named: Backends, reported: list[str]
) -> None:
    lines = list[str]()
    audit = planned_audit(Plan(services=services, monitoring=True), named, lines.append)
    assert (lines, audit is None) == (reported, bool(reported))


def test_audit_gets_the_addresses_of_its_role_and_no_others() -> None:
    urls = ServiceUrls(owner="owner", runtime="runtime", audit="audit")
    backends = Backends(dict.fromkeys(SERVICES, urls), "redis", "http://gateway", "key")
    found = audit_environment(Plan(), backends)
    assert [found[f"TALLY_{name.upper()}_AUDIT_DATABASE_URL"] for name in SERVICES] == ["audit"] * 4
    assert not {"owner", "runtime", "redis"} & {*found.values()}
    assert found["TALLY_AUDIT_METRICS_BIND"] == "127.0.0.1:50065"


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
