"""A replica's metrics before its first call: counters exist, so that the first event counts."""

from __future__ import annotations

import asyncio
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from common.rpc import reasons
from deploy.errors_reference import methods
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import environment, every_service
from tests.support.contract import BULK

NOT_USED = {
    "balance": {"tally_call_retries", "tally_unreadable_rows"},
    "coupon": {"tally_call_retries", "tally_unreadable_rows"},
    "order": {"tally_bulk_items"},
    "payment": {"tally_bulk_items", "tally_call_retries"},
}
"""Counters of what a service does not do: it calls no other service, has no bulk method."""


@every_service
async def test_every_counter_begins_at_zero(
    service: str, migrated: ServiceUrls, unused_tcp_port: int
) -> None:
    given = environment(service, migrated.runtime) | {"TALLY_METRICS_PORT": str(unused_tcp_port)}
    async with process(f"{service}_service", **given) as running:
        await running.line("listening")
        page = await asyncio.to_thread(read, f"http://127.0.0.1:{unused_tcp_port}/metrics")
    counters = [each for each in text_string_to_metric_families(page) if each.type == "counter"]
    own = [each for each in counters if each.name.startswith("tally_")]
    assert len(own) > 10
    assert {each.name for each in own if not each.samples} == NOT_USED[service]
    ends = {
        (sample.labels["method"], sample.labels["code"], sample.labels["reason"])
        for each in own
        for sample in each.samples
        if each.name in {"tally_grpc_calls", "tally_bulk_items"}
        if sample.labels["method"].startswith("/tally.")
    }
    assert ends == declared(service)


def read(url: str) -> str:
    with urlopen(url) as response:
        text: str = response.read().decode()
    return text


def declared(service: str) -> set[tuple[str, str, str]]:
    """The ends of calls and items that the servicers declare, and OK."""
    found = set()
    for method in methods():
        if method.path.startswith(f"/tally.{service}."):
            ends = reasons.ends_of(method.path, method.function)
            if method.descriptor.name in BULK:
                ends = [*ends, *reasons.ends_of_items(method.function)]
            found |= {(method.path, code.value, reason) for code, reason in ends}
            found.add((method.path, "OK", ""))
    return found
