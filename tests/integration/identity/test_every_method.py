"""Every method, from the descriptors, called by everyone who may not: the status, and no write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from common.ids import new_id
from common.rpc import reflection
from common.rpc.access import callers_of
from coupon_service.model.ticket import new_ticket_id
from deploy.local.identities import Issuer
from tally.options.v1 import access_pb2
from tests.integration.common.test_reflection import services_of
from tests.integration.contract.services import OTHER_USER, Services
from tests.integration.contract.statuses import ExpectedStatus, Status, expected, not_found
from tests.integration.contract.valid_requests import USER
from tests.support.contract import METHODS, METHODS_BY_NAME
from tests.support.statements import recorded_statements
from tests.support.tokens import Authorized, bad_tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = [one for one in METHODS if access_pb2.CALLER_PUBLIC in callers_of(one)]
GUARDED = [one for one in METHODS if one not in PUBLIC]
FOR_USERS = [one for one in METHODS if access_pb2.CALLER_USER in callers_of(one)]
NOT_PERMITTED = expected("PERMISSION_DENIED", "NOT_PERMITTED")
OF_SAGAS = {
    *("DeductBalance", "RefundDeduction", "BatchWrite", "RedeemCoupon", "RestoreCoupon"),
    *("ConfirmPayment", "CancelPayment", "GetConfirmations"),
}


def named(method: MethodDescriptor) -> str:
    return method.name


def as_caller(services: Services, token: str | None) -> Services:
    """The same services, as another caller calls them."""
    channels: dict[str, Any] = {
        name: Authorized(one.channel, token) for name, one in authorized(services).items()
    }
    other = replace(services, channels=channels)
    other.seed, other._queries = services.seed, services._queries
    return other


def authorized(services: Services) -> dict[str, Authorized]:
    """The channels of this module's services."""
    return cast(dict[str, Authorized], services.channels)


async def differences(
    services: Services, token: str | None, method: MethodDescriptor, wanted: ExpectedStatus
) -> list[str]:
    """How a valid request with this token differs from the expected status."""
    raw = services.valid(method.name).SerializeToString()
    return await as_caller(services, token).raw_differences(method, raw, wanted)


@pytest.mark.parametrize("method", GUARDED, ids=named)
async def test_callers_who_are_not_known_are_refused(
    services: Services, issuer: Issuer, method: MethodDescriptor
) -> None:
    found = []
    async with services.unchanged():
        for label, (token, reason) in bad_tokens(issuer, "olga", "operator").items():
            wanted = expected("UNAUTHENTICATED", reason)
            found += [
                f"{label}: {one}" for one in await differences(services, token, method, wanted)
            ]
    assert found == []


def strangers(method: MethodDescriptor) -> Iterator[tuple[str, Callable[[Issuer], str]]]:
    """Those who have a good token, and may not make a valid call of the method for USER."""
    callers = callers_of(method)
    if access_pb2.CALLER_USER in callers:
        yield "another user", lambda issuer: issuer.token(OTHER_USER)
    else:
        yield "the user himself", lambda issuer: issuer.token(USER)
    yield "a service without methods", lambda issuer: issuer.token("stranger", "service")
    yield "a service with another method", lambda issuer: issuer.token("watcher", "service")
    if method.name not in OF_SAGAS:
        yield "the order service", lambda issuer: issuer.token("order", "service")
    yield "a user who has a service's name", lambda issuer: issuer.token("order")


@pytest.mark.parametrize("method", GUARDED, ids=named)
async def test_callers_who_may_not_are_refused(
    services: Services, issuer: Issuer, method: MethodDescriptor
) -> None:
    found = []
    async with services.unchanged():
        for label, token_of in strangers(method):
            if (label, method.name) == ("a service with another method", "WatchOrder"):
                continue
            token = token_of(issuer)
            found += [
                f"{label}: {one}"
                for one in await differences(services, token, method, NOT_PERMITTED)
            ]
    assert found == []


@pytest.mark.parametrize("method", PUBLIC, ids=named)
async def test_public_methods_admit_everyone(
    services: Services, issuer: Issuer, method: MethodDescriptor
) -> None:
    raw = services.valid(method.name).SerializeToString()
    for token, _ in bad_tokens(issuer, USER).values():
        assert await as_caller(services, token).status(method, raw) is None


@pytest.mark.parametrize("method", FOR_USERS, ids=named)
async def test_a_user_may_act_for_himself(
    services: Services, issuer: Issuer, method: MethodDescriptor
) -> None:
    """The control of the refusals: only the user_id was wrong."""
    request = services.valid(method.name)
    user = as_caller(services, issuer.token(request.user_id))
    assert await user.status(method, request.SerializeToString()) is None


async def test_the_order_service_has_the_methods_of_sagas_and_no_other(
    services: Services, issuer: Issuer
) -> None:
    order = as_caller(services, issuer.token("order", "service"))
    for name in OF_SAGAS:
        raw = services.valid(name).SerializeToString()
        status = await order.status(METHODS_BY_NAME[name], raw)
        assert status is None or status.code is not grpc.StatusCode.PERMISSION_DENIED, name


async def test_size_is_checked_before_identity_and_identity_before_form(
    services: Services,
) -> None:
    nobody = as_caller(services, None)
    method = METHODS_BY_NAME["CreateOrder"]
    missing = expected("UNAUTHENTICATED", "TOKEN_MISSING")
    assert await nobody.raw_differences(method, b"\xff" * 100, missing) == []
    too_large = expected("INVALID_ARGUMENT", "INVALID_FIELD", "request")
    assert await nobody.raw_differences(method, b"\xff" * 70_000, too_large) == []


async def test_a_user_id_is_checked_before_the_rest_of_the_request(
    services: Services, issuer: Issuer
) -> None:
    request = services.valid("CreateOrder", request_id="")
    other = as_caller(services, issuer.token(OTHER_USER))
    assert await other.differences(request, NOT_PERMITTED) == []


# -- another's object, and none --------------------------------------------------------------------

OF_ONE_USER = {
    "GetLedgerEntry": ("entry_id", "entries", "LEDGER_ENTRY_NOT_FOUND"),
    "GetCoupon": ("coupon_id", "coupons", "COUPON_NOT_FOUND"),
    "GetTicket": ("ticket_id", "tickets", "TICKET_NOT_FOUND"),
    "WatchTicket": ("ticket_id", "tickets", "TICKET_NOT_FOUND"),
    "GetOrder": ("order_id", "paid_orders", "ORDER_NOT_FOUND"),
    "WatchOrder": ("order_id", "paid_orders", "ORDER_NOT_FOUND"),
    "PayOrder": ("order_id", "pending_orders", "ORDER_NOT_FOUND"),
    "CancelOrder": ("order_id", "pending_orders", "ORDER_NOT_FOUND"),
    "GetPayment": ("payment_id", "payments", "PAYMENT_NOT_FOUND"),
}
"""The methods for users that take the id of an object: its field, and USER's in the seed."""


async def test_the_table_has_every_method_for_users_that_takes_an_id() -> None:
    ids = {id_ for id_, _, _ in OF_ONE_USER.values()}
    taking = {one.name for one in FOR_USERS if ids & set(one.input_type.fields_by_name)}
    assert taking == OF_ONE_USER.keys() | {"ListPayments"}, "ListPayments only filters by order_id"


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name, (_, kind, _) in OF_ONE_USER.items()), ("CancelOrder", "paid_orders")],
)
async def test_anothers_object_and_a_missing_one_are_answered_alike(
    services: Services, issuer: Issuer, name: str, kind: str
) -> None:
    """Also by the same statements, so that their time tells nothing either: a write, which locks
    what there is, looks once more whether a missing one exists."""
    field, _, reason = OF_ONE_USER[name]
    bob = as_caller(services, issuer.token(OTHER_USER))
    answers, executed = [], []
    async with services.unchanged():
        for id_ in (getattr(services.seed, kind)[0], missing(services, kind)):
            request = services.valid(name, user_id=OTHER_USER, **{field: id_})
            with recorded_statements(id_) as statements:
                assert await bob.differences(request, not_found(reason)) == []
            status = await bob.status(METHODS_BY_NAME[name], request.SerializeToString())
            answers.append(without(status, id_))
            executed.append(statements)
    assert answers[0] == answers[1]
    more = len(executed[1]) - len(executed[0])
    assert more in ({0, 1} if name in {"PayOrder", "CancelOrder"} else {0})
    assert executed[0] == executed[1][: len(executed[0])] != []


async def test_payments_of_an_order_are_ones_own_only(services: Services, issuer: Issuer) -> None:
    """Both users have payments of the order; an order_id is not checked against its user."""
    bob = as_caller(services, issuer.token(OTHER_USER))
    listed = await bob.call(services.valid("ListPayments", user_id=OTHER_USER, page_size=500))
    assert {one.user_id for one in listed.payments} == {OTHER_USER}


def missing(services: Services, kind: str) -> str:
    """An id of nothing. A ticket's has the time in which a ticket that is gone counts as lost."""
    if kind == "tickets":
        return new_ticket_id(services.seed.queued, datetime(2020, 1, 1, tzinfo=UTC))
    return new_id()


def without(status: Status | None, id_: str) -> tuple[Any, ...]:
    """The status with the id that the caller sent taken out."""
    assert status is not None
    details = [str(one).replace(id_, "<id>") for one in status.details]
    return status.code, status.message.replace(id_, "<id>"), details, sorted(status.trailing)


async def test_reflection_is_off_where_identity_is_on(services: Services) -> None:
    for opened in authorized(services).values():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await services_of(opened.channel, reflection.V1)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
