"""What becomes of calls that are admitted: sagas, pauses, reserved ids, streams, the log, keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from common.errors import Code
from common.identity.service_token import ServiceToken
from common.ids import new_id
from common.rpc.client import ServiceClient
from common.rpc.pauses import CALLER
from common.rpc.status import from_rpc_error
from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.table import as_text
from deploy.local.identities import Identities, Issuer
from deploy.local.secret_files import write_secret
from tally.balance.v1 import balance_pb2 as balance
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.order.v1 import order_pb2 as pb
from tally_client.rpc.channels import open_channel
from tests.integration.contract.services import OTHER_USER, Services
from tests.integration.contract.statuses import invalid
from tests.integration.contract.valid_requests import USER, fresh
from tests.integration.identity.test_every_method import as_caller, authorized
from tests.support.balances import batch, charge, deduct, refund
from tests.support.contract import METHODS_BY_NAME
from tests.support.orders import pay
from tests.support.payments import until
from tests.support.refusals import refused
from tests.support.stack import Stack, sources_of
from tests.support.time_limits import LONG_S
from tests.support.tokens import Authorized

LIFE_S = 2
"""Of a token: it has to be long enough to open a stream."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- whose call it is ------------------------------------------------------------------------------


async def test_calls_at_the_same_time_have_each_their_own_caller(
    services: Services, issuer: Issuer
) -> None:
    """On one connection, and decided in the same batches."""
    users = {name: as_caller(services, issuer.token(name)) for name in (USER, OTHER_USER)}
    order = as_caller(services, issuer.token("order", "service"))
    method, direct, id_ = METHODS_BY_NAME["GetBalance"], fresh(), new_id()
    await services.call(charge(OTHER_USER, 1, fresh()))

    async def refused_for(caller: str, user_id: str) -> bool:
        request = services.valid("GetBalance", user_id=user_id)
        request.ClearField("at_time")  # a second that may be before the account
        status = await users[caller].status(method, request.SerializeToString())
        assert status is None or status.reason == "NOT_PERMITTED"
        return status is not None

    pairs = [(caller, user_id) for caller in users for user_id in users] * 25
    answers = await asyncio.gather(
        *(refused_for(*pair) for pair in pairs),
        *(services.call(deduct(USER, 1, f"{direct}-{number}")) for number in range(20)),
        *(order.call(deduct(USER, 1, f"{id_}:step_{letter}")) for letter in "abcdefghijklmnopqrst"),
    )
    assert answers[: len(pairs)] == [caller != user_id for caller, user_id in pairs]
    assert await origins(services, f"{direct}-%") == {"balance DIRECT"}
    assert await origins(services, f"{id_}:%") == {"balance SAGA"}


# -- sagas -----------------------------------------------------------------------------------------


async def test_a_users_order_is_paid_under_the_order_services_identity(
    services: Services, stack: Stack, issuer: Issuer
) -> None:
    """The user himself could not call the other services, and they log nothing of his token."""
    token = issuer.token(USER, more="canary")
    user = as_caller(services, token)
    made = await user.call(services.valid("CreateOrder"))
    request = pay(
        made.order, coupon_id=services.seed.coupons[2], balance=1_000, payment_key=fresh()
    )
    with capture_logs() as logged:
        paid = await user.call(request)
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


# -- pauses ----------------------------------------------------------------------------------------


@contextmanager
def paused(file: Path, service: str) -> Iterator[None]:
    """All methods of the service are paused, as soon as the file is read."""
    write_secret(file, service)
    try:
        yield
    finally:
        file.unlink()


async def test_only_the_order_service_passes_a_pause(
    services: Services, stack: Stack, issuer: Issuer, pause_file: Path
) -> None:
    """An operator who sends the metadata of its calls does not; its sagas end."""
    user = as_caller(services, issuer.token(USER))
    channel = authorized(services)["balance"].channel
    made = await user.call(services.valid("CreateOrder"))
    request = deduct(USER, 1, fresh())

    async def call(subject: str, role: str) -> str:
        token = issuer.token(subject, role)
        marked = (*CALLER, ("authorization", f"Bearer {token}"))
        try:
            await BalanceServiceStub(channel).DeductBalance(request, metadata=marked)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason
        return ""

    with paused(pause_file, "tally.balance.v1.BalanceService"):
        await until(lambda: call("olga", "operator"), lambda reason: reason == "PAUSED")
        assert await call("order", "service") == ""
        paying = pay(made.order, balance=made.order.total.amount_minor)
        assert (await user.call(paying)).order.state == pb.Order.STATE_PAID
        assert await call("olga", "operator") == "PAUSED"
    await until(lambda: call("olga", "operator"), lambda reason: reason == "")


# -- the origin of effects -------------------------------------------------------------------------


async def origins(services: Services, of: str) -> set[str]:
    """The origins of the deductions, redemptions and payments whose request_id is like this."""
    tables = {"balance": "ledger_entries", "coupon": "redemptions", "payment": "payments"}
    found = [
        await services.databases[service].fetch(
            f"SELECT '{service}', origin FROM {table} WHERE request_id LIKE $1", of
        )
        for service, table in tables.items()
    ]
    return {f"{service} {origin}" for rows in found for service, origin in rows}


async def test_the_origin_of_an_effect_is_its_caller(services: Services, issuer: Issuer) -> None:
    made = await services.call(services.valid("CreateOrder"))
    request = pay(
        made.order, coupon_id=services.seed.coupons[3], balance=1_000, payment_key=fresh()
    )
    assert (await services.call(request)).order.state == pb.Order.STATE_PAID
    saga = await services.call(pb.GetSagaRequest(order_id=made.order.order_id))
    assert await origins(services, f"{saga.saga.saga_id}:%") == {
        "balance SAGA",
        "coupon SAGA",
        "payment SAGA",
    }
    direct = fresh()
    await services.call(deduct(USER, 1, direct))
    await services.call(batch(deduct(USER, 1, f"{direct}-batch")))
    await services.call(services.valid("ConfirmPayment", request_id=direct))
    assert await origins(services, f"{direct}%") == {"balance DIRECT", "payment DIRECT"}


async def test_an_effect_of_the_order_service_without_its_saga_is_a_breach(
    services: Services, stack: Stack, issuer: Issuer
) -> None:
    order, id_ = as_caller(services, issuer.token("order", "service")), new_id()
    await order.call(deduct(USER, 1, f"{id_}:deduct_balance"))
    report = await audit(sources_of(stack), Limits(settle_s=0.0))
    text = as_text(report, details=True)
    assert f"saga {id_} of {USER}: deduction of KRW 1, and no such saga" in text
    assert report.noted(Note.FOREIGN) == 0


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
            assert line.items() >= {**recorded, "user_id": USER}.items()
    with capture_logs() as logged:
        await services.call(services.valid("GetBalance"))
        written = await until(calls, bool)
    assert [line["user_id"] for line in written] == [USER]


async def test_a_bulk_call_is_recorded_with_the_users_of_its_items(services: Services) -> None:
    writes = [charge(USER, 1, fresh()), charge(OTHER_USER, 1, fresh()), charge(USER, 1, fresh())]
    with capture_logs() as logged:
        await services.call(batch(*writes, charge("not a user", 1, fresh())))
    [line] = [line for line in logged if line["event"] == "call"]
    assert line.items() >= {"items": 4, "user_ids": [USER, OTHER_USER], "subject": "olga"}.items()


@pytest.mark.parametrize(
    ("subject", "role", "method"),
    [
        ("watcher", "service", "DeductBalance"),
        ("watcher", "service", "WatchTicket"),
        ("order", "service", "GetCart"),
        (USER, "", "DeductBalance"),
    ],
)
async def test_methods_that_a_service_may_not_call_are_recorded(
    services: Services, issuer: Issuer, subject: str, role: str, method: str
) -> None:
    caller = as_caller(services, issuer.token(subject, role))
    with capture_logs() as logged, refused("NOT_PERMITTED"):
        await caller.call(services.valid(method))
    lines = [(line["subject"], line["reason"]) for line in logged if line["event"] == "call"]
    assert lines == ([(subject, "NOT_PERMITTED")] if role else [])


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
