"""The four services on servers, and behind poolers, that are not as PostgreSQL's defaults."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import pytest

from balance_service.settings import BalanceSettings
from common import service
from common.metrics import REGISTRY
from coupon_service.settings import CouponSettings
from deploy.local.gateway.simulator import GatewaySimulator
from order_service.settings import OrderSettings
from payment_service.settings import PaymentSettings
from tests.support.databases import C_LOCALE, Databases, StackDatabases, created, name_of
from tests.support.pooler import pooler
from tests.support.sale import assert_all_sold
from tests.support.stack import Wire, running_stack

ORDERS: Final = 60
SETTINGS: Final = {
    "balance": BalanceSettings,
    "coupon": CouponSettings,
    "order": OrderSettings,
    "payment": PaymentSettings,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_migrate_ends_with_1_and_one_line_for_another_encoding(
    name: str,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, as an operator would run it."""
    no_build: Any = None
    variable = f"TALLY_{name.upper()}_OWNER_DATABASE_URL"
    monkeypatch.setattr("common.logs.configure", lambda **_: None)
    with created(databases.server, f"ENCODING 'EUC_KR' {C_LOCALE}", name) as urls:
        monkeypatch.setenv(variable, urls.owner)
        with pytest.raises(SystemExit) as ended:
            service.main(SETTINGS[name], no_build, ["migrate"])
    assert ended.value.code == service.FAILED
    line = capsys.readouterr().err
    assert line.startswith(f"{variable}: server_encoding is EUC_KR, ")
    assert line.count("\n") == 1


def conflicts() -> float:
    """How many transactions of lanes have failed since the start because others ran."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "tally_lane_faults"
        for sample in metric.samples
        if sample.labels.get("fault") == "contention" and sample.name.endswith("_total")
    )


async def test_sixty_orders_are_paid_where_serializable_is_the_default(
    databases: Databases, gateway: GatewaySimulator
) -> None:
    with databases.clone_all() as cloned:
        for urls in cloned.urls.values():
            databases.server.run_sql(
                f'ALTER DATABASE "{name_of(urls)}"'
                " SET default_transaction_isolation = 'serializable'"
            )
        before = conflicts()
        async with running_stack(cloned, gateway, "", Wire()) as stack:
            await assert_all_sold(stack, ORDERS)
        assert conflicts() == before


async def test_orders_are_paid_behind_poolers(
    databases: Databases, gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make test-pooler`` has the same with PgBouncer."""
    monkeypatch.setenv("TALLY_POOLER", "transaction")
    with databases.clone_all() as cloned:
        async with AsyncExitStack() as stack:
            urls = {}
            for name, direct in cloned.urls.items():
                between = await stack.enter_async_context(pooler(direct.runtime, refuses=True))
                urls[name] = replace(direct, runtime=between.url(direct.runtime))
            pooled = StackDatabases(urls, cloned.server)
            running = await stack.enter_async_context(running_stack(pooled, gateway, "", Wire()))
            await assert_all_sold(running, 5)
