"""No secret is in anything that a stack writes or answers, whatever fails.

Everything that the services use is secret in some part, and fails in turn. Then each secret is
searched for in all that came out: statuses, logs, traces, metrics, command lines and tables.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from deploy import reference
from deploy.local.identities import AUDIENCE, Identities, Issuer
from deploy.local.valkey import ValkeyServer
from tests.integration.start.secret_stack import (
    BALANCE_AUDIENCE,
    CANARY,
    EXPORT_KEY,
    GATEWAY_KEY,
    Outputs,
    Parts,
    Running,
    echoing,
    forms,
)
from tests.support.balances import balance_of, charge
from tests.support.collector import collecting
from tests.support.coupons import campaign, get_coupon, issue
from tests.support.databases import SERVICES, Databases, StackDatabases
from tests.support.gateway_wire import gateway_wire
from tests.support.orders import UNKNOWN_ID, create_order, create_product, fresh, pay
from tests.support.payments import confirm
from tests.support.time_limits import LONG_S
from tests.support.tokens import bad_tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAYMENT_KEY: Final = f"{CANARY}-card"
"""A payment_key is an id, which logs and answers may have; traces and metrics may not."""
GARBAGE: Final = f"{CANARY}-claim"
"""In tokens, and in place of tokens."""
USER: Final = "ann"
SHORT_S: Final = 3.0
"""The deadline of a call that is not to succeed."""
TABLES: Final = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
SECRET_SETTINGS: Final = {
    *("database_url", "owner_database_url", "audit_database_url", "redis_url"),
    "gateway_secret_key",
}


# -- what fails ------------------------------------------------------------------------------------


async def wrong_tokens(running: Running, issuer: Issuer) -> None:
    outputs = running.outputs
    request = get_coupon(UNKNOWN_ID, USER)
    for label, (token, _) in bad_tokens(issuer, "olga", "operator").items():
        sent = None if token is None else f"Bearer {outputs.add_token(label, token)}"
        await running.call(request, sent)
    outputs.secrets["texts sent as tokens"] = [GARBAGE]
    for sent in (GARBAGE, f"Bearer {GARBAGE}", f"Basic {GARBAGE}", f"Bearer a {GARBAGE}"):
        await running.call(request, sent, ("x-api-key", GARBAGE), ("cookie", GARBAGE))


async def a_failing_gateway(running: Running, operator: str, user: str) -> None:
    kinds = ("refused", "html", "lost", "code", "declined")
    confirming = [confirm(f"{PAYMENT_KEY}-{kind}", fresh("c"), user_id=USER) for kind in kinds]
    await asyncio.gather(*(running.call(one, operator) for one in confirming))
    made = await running.call(create_product("p", 9), operator)
    for paying in ({"payment_key": f"{PAYMENT_KEY}-declined-2"}, {"balance": 100}):
        lines = {made.product.product_id: 1}
        ordered = await running.call(create_order(USER, lines, fresh("o")), user)
        limit_s = SHORT_S if "balance" in paying else LONG_S
        await running.call(pay(ordered.order, **paying), user, limit_s=limit_s)
    # The balance service refuses the token of the order service.
    await running.until_logged("order", "service_token_refused")


async def a_defect(running: Running, databases: StackDatabases, operator: str, user: str) -> None:
    made = await running.call(campaign("camp"), operator)
    await databases.sql("coupon", "ALTER TABLE coupons RENAME TO gone")
    await running.call(issue(made.campaign.campaign_id, USER, "i"), user)
    await running.call(get_coupon(UNKNOWN_ID, USER), user)
    await running.until_logged("coupon", "unexpected error")


async def redis_away(running: Running, valkey: ValkeyServer, operator: str) -> None:
    await running.call(charge(USER, 1, "with-redis"), operator)
    await asyncio.to_thread(valkey.stop)
    await running.call(charge(USER, 1, "without-redis"), operator)
    await running.until_logged("balance", "redis_lock_absent")


async def databases_away(running: Running, databases: StackDatabases, user: str) -> None:
    with ExitStack() as away:
        for service in SERVICES:
            await asyncio.to_thread(away.enter_context, databases.away(service))
        for service in SERVICES:
            await running.until_logged(service, "not ready")
        for request in (get_coupon(UNKNOWN_ID, USER), balance_of(USER)):
            await running.call(request, user)


def text_of(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


async def read_the_rest(running: Running, databases: StackDatabases) -> None:
    """What is not a status, a log or a trace."""
    texts = running.outputs.texts
    async with httpx.AsyncClient(trust_env=False) as client:
        for service, page in running.pages.items():
            texts[f"metrics of {service}"].append((await client.get(page)).text)
    for service, started in running.services.items():
        started.process.send_signal(signal.SIGUSR1)
        await running.until_logged(service, "tasks_written")
        texts[f"command line of {service}"].append(text_of(f"/proc/{started.process.pid}/cmdline"))
    for service, urls in databases.urls.items():
        connection = await asyncpg.connect(urls.owner)
        for (table,) in await connection.fetch(TABLES):
            rows = await connection.fetch(f'SELECT t::text FROM "{table}" t')
            texts[f"tables of {service}"] += [row for (row,) in rows]
        await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outputs(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Outputs]:
    """All that came out of a stack in which everything failed that can."""
    found = Outputs()
    identities = Identities(tmp_path_factory.mktemp("identity"))
    issuer = identities.issuer
    both: dict[str, Any] = {"aud": [AUDIENCE, BALANCE_AUDIENCE], "more": GARBAGE}
    operator = found.add_token("operator's token", issuer.token("olga", "operator", **both))
    user = found.add_token("user's token", issuer.token(USER, **both))
    own = text_of(identities.environment()["TALLY_ORDER_SERVICE_TOKEN_FILE"]).strip()
    found.add_token("order service's token", own)
    operator, user = f"Bearer {operator}", f"Bearer {user}"
    with (
        databases.clone_all() as cloned,
        ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
        collecting() as collector,
    ):
        async with gateway_wire(echoing) as gateway:
            parts = Parts(cloned, valkey, collector, identities, gateway.url)
            found.secrets |= {name: [secret] for name, secret in parts.secrets()}
            async with parts.running(found) as running:
                await wrong_tokens(running, issuer)
                await running.call(charge(USER, 1, "by-himself"), user)
                await a_failing_gateway(running, operator, user)
                await a_defect(running, cloned, operator, user)
                await redis_away(running, valkey, operator)
                await read_the_rest(running, cloned)
                await databases_away(running, cloned, user)
            found.sent_to_the_gateway = [str(one.headers) for one in gateway.requests]
        found.texts["traces"] = [f"{one} {one.SerializeToString()!r}" for one in collector.requests]
        found.sent_to_the_collector = [str(one) for one in collector.metadata]
    yield found


# -- the tests -------------------------------------------------------------------------------------


async def test_everything_failed(outputs: Outputs) -> None:
    """The control: each kind of failure was answered, and each output has something."""
    assert outputs.reasons >= {
        *("TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "NOT_PERMITTED"),
        *("PAYMENT_DECLINED", "PAYMENT_OUTCOME_UNKNOWN", "GATEWAY_UNAVAILABLE", "INTERNAL"),
    }
    assert outputs.reasons & {"DATABASE_UNAVAILABLE", "REPLICA_NOT_READY"}
    places = {f"{one} of {each}" for one in ("log", "metrics", "tables") for each in SERVICES}
    assert {*places, "statuses", "traces"} <= outputs.texts.keys()
    assert all(outputs.texts.values())
    assert outputs.places_of(PAYMENT_KEY), "what is no secret is found"
    assert any(form in outputs.sent_to_the_gateway[0] for form in forms(GATEWAY_KEY))
    assert EXPORT_KEY in outputs.sent_to_the_collector[0]


async def test_no_secret_is_in_any_output(outputs: Outputs) -> None:
    assert outputs.found() == []


async def test_payment_keys_are_in_no_trace_and_no_metric(outputs: Outputs) -> None:
    places = {place.partition(":")[0] for place in outputs.places_of(PAYMENT_KEY)}
    assert [one for one in places if one.startswith(("traces", "metrics"))] == []


async def test_every_secret_setting_is_one_of_the_stack_s() -> None:
    """A new secret setting fails here until the stack above has it."""
    secret = {
        name
        for settings in reference.SETTINGS
        for name, given in settings.model_fields.items()
        if isinstance(given.default, SecretStr)
    }
    assert secret == SECRET_SETTINGS


@pytest.mark.parametrize("secret", [GATEWAY_KEY, "plain"])
async def test_control_a_secret_is_found_in_each_of_its_forms(secret: str) -> None:
    for form in forms(secret):
        outputs = Outputs(secrets={"it": [secret]})
        outputs.texts["log"].append(f'{{"event": "failed", "reason": "with {form}!"}}')
        assert outputs.found() != []
