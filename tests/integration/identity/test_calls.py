"""What becomes of calls that are admitted: sagas, streams, reserved ids, the log, the keys."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from common.errors import Code
from common.identity.service_token import ServiceToken
from common.ids import new_id
from common.rpc.client import ServiceClient
from deploy.local.identities import Identities, Issuer
from deploy.local.secret_files import write_secret
from tally.balance.v1 import balance_pb2 as balance
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.order.v1 import order_pb2 as pb
from tally_client.rpc.channels import open_channel
from tests.integration.contract.services import Services
from tests.integration.contract.statuses import invalid
from tests.integration.contract.valid_requests import USER, fresh
from tests.integration.identity.test_every_method import as_caller, authorized
from tests.support.balances import charge, deduct, refund, won
from tests.support.contract import METHODS_BY_NAME
from tests.support.payments import until
from tests.support.refusals import refused
from tests.support.stack import Stack
from tests.support.time_limits import LONG_S
from tests.support.tokens import Authorized

LIFE_S = 2
"""Of a token: it has to be long enough to open a stream."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- sagas -----------------------------------------------------------------------------------------


async def test_a_users_order_is_paid_under_the_order_services_identity(
    services: Services, stack: Stack, issuer: Issuer
) -> None:
    """The user himself could not call the other services, and they log nothing of his token."""
    token = issuer.token(USER, more="canary")
    user = as_caller(services, token)
    made = await user.call(services.valid("CreateOrder"))
    pay = pb.PayOrderRequest(
        order_id=made.order.order_id,
        user_id=USER,
        coupon_id=services.seed.coupons[2],
        balance_amount=won(1_000),
        payment_key=fresh(),
        request_id=fresh(),
    )
    with capture_logs() as logged:
        paid = await user.call(pay)
    assert paid.order.state == pb.Order.STATE_PAID
    assert {"redeem_coupon", "deduct_balance", "confirm_payment"} <= set(stack.wire.calls)
    signature = token.rpartition(".")[2]
    assert signature not in str(logged)
    for database in services.databases.values():
        tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables:
            rows = await database.fetch(f'SELECT t::text FROM "{table}" t')
            assert signature not in str(rows), table


async def test_a_service_whose_token_is_refused_finds_the_other_away(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    """Nobody who calls it could do anything about that; the log has the cause, once."""
    file = tmp_path / "token"
    write_secret(file, issuer.token("order", "service", exp=1))
    channel = open_channel(stack.peers["balance"][0])
    request = deduct(USER, 1, fresh())
    async with ServiceClient(channel, BalanceServiceStub, ServiceToken(file)) as client:
        with capture_logs() as logged:
            for _ in range(2):
                with refused("") as ended:
                    await client.call(
                        client.stub.DeductBalance, request, limit_s=LONG_S, attempts_max=1
                    )
    assert ended.refusal.code is Code.UNAVAILABLE
    lines = [line for line in logged if line["event"] == "service_token_refused"]
    assert [(line["operation"], line["log_level"]) for line in lines] == [
        ("DeductBalanceRequest", "error")
    ]


# -- reserved request_ids --------------------------------------------------------------------------


def reserving(services: Services, id_: str) -> list[tuple[str, Any]]:
    """Requests with this request_id, and the field that it is in."""
    items = [
        balance.BatchWriteItem(charge=charge(USER, 1, fresh())),
        balance.BatchWriteItem(refund=refund(USER, id_, fresh())),
    ]
    return [
        ("request_id", services.valid("ChargeBalance", request_id=id_)),
        ("request_id", services.valid("DeductBalance", request_id=id_)),
        ("deduct_request_id", services.valid("RefundDeduction", deduct_request_id=id_)),
        ("confirm_request_id", services.valid("CancelPayment", confirm_request_id=id_)),
        ("items[1].refund.deduct_request_id", services.valid("BatchWrite", items=items)),
        ("request_id", services.valid("CreateOrder", request_id=id_)),
    ]


@pytest.mark.parametrize("step", [":deduct_balance", ":deduct_balance:undo"])
async def test_request_ids_of_sagas_are_reserved(services: Services, step: str) -> None:
    async with services.unchanged():
        for field, request in reserving(services, new_id() + step):
            assert await services.differences(request, invalid(field)) == []


async def test_only_the_order_service_uses_request_ids_of_sagas(
    services: Services, issuer: Issuer
) -> None:
    order = as_caller(services, issuer.token("order", "service"))
    posted = await order.call(deduct(USER, 1, f"{new_id()}:deduct_balance"))
    assert posted.entry.entry_id


@pytest.mark.parametrize("id_", ["pay:{}", "{}", "{}:", "{}:Pay", "{}:pay:redo", "x{}:pay"])
async def test_other_request_ids_are_not_reserved(services: Services, id_: str) -> None:
    await services.call(deduct(USER, 1, id_.format(new_id())))


# -- streams ---------------------------------------------------------------------------------------


async def test_a_stream_ends_with_its_token(services: Services, issuer: Issuer) -> None:
    leeway_s = 10
    token = issuer.token(USER, exp=int(time.time()) - leeway_s + LIFE_S)
    channel = authorized(services)["order"].channel
    watch = Authorized(channel, token).unary_stream(
        "/tally.order.v1.OrderService/WatchOrder",
        request_serializer=pb.WatchOrderRequest.SerializeToString,
        response_deserializer=pb.WatchOrderResponse.FromString,
    )
    request = pb.WatchOrderRequest(order_id=services.seed.pending_orders[-1], user_id=USER)
    stream = watch(request)
    assert (await stream.read()).order.state == pb.Order.STATE_PENDING
    with refused("TOKEN_EXPIRED"):
        async with asyncio.timeout(LIFE_S * 10):
            await stream.read()


# -- the log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "role", "recorded"),
    [
        ("olga", "operator", {"caller": "OPERATOR", "subject": "olga"}),
        ("watcher", "service", {"caller": "SERVICE", "subject": "watcher"}),
        (USER, "", None),
    ],
)
async def test_callers_who_act_for_others_are_recorded(
    services: Services, issuer: Issuer, subject: str, role: str, recorded: dict[str, str] | None
) -> None:
    caller = as_caller(services, issuer.token(subject, role))

    async def calls() -> list[Any]:
        return [line for line in logged if line["event"] == "call"]

    with capture_logs() as logged:
        await caller.call(services.valid("WatchOrder"))
        if recorded is not None:
            # A stream's line is written after the caller has its end.
            [line] = await until(calls, bool)
            assert line.items() >= {"method": "/tally.order.v1.OrderService/WatchOrder"}.items()
            assert line.items() >= recorded.items()
    with capture_logs() as logged:
        await services.call(services.valid("GetBalance"))
        written = await until(calls, bool)
    assert [line["user_id"] for line in written] == [USER]


# -- keys ------------------------------------------------------------------------------------------


async def test_keys_rotate_without_a_restart(
    services: Services, identities: Identities, issuer: Issuer
) -> None:
    file = Path(identities.environment()["TALLY_AUTH_JWKS"])
    old = identities.issuer.jwks()
    following = Issuer(Ed25519PrivateKey.generate(), "next")
    user = as_caller(services, following.token(USER))
    request = services.valid("GetBalance")

    async def refused_for() -> str:
        status = await user.status(METHODS_BY_NAME["GetBalance"], request.SerializeToString())
        return status.reason if status else ""

    assert await refused_for() == "TOKEN_INVALID"
    keys = json.loads(old)["keys"] + json.loads(following.jwks())["keys"]
    write_secret(file, json.dumps({"keys": keys}))
    await until(refused_for, lambda reason: reason == "")
    with capture_logs() as logged:
        write_secret(file, "broken")
        await until(_now, lambda _: "identity_keys_not_read" in str(logged))
    assert await refused_for() == "", "the last good keys stay"
    write_secret(file, old)
    await until(refused_for, lambda reason: reason == "TOKEN_INVALID")
    assert (await services.call(request)).balance.user_id == USER


async def _now() -> None:
    await asyncio.sleep(0)
