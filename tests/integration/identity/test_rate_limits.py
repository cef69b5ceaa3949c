"""Rate limits where identity is on: users by subject, public methods by address, others not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.ids import new_id
from common.rpc.client_address import FORWARDED_FOR
from deploy.local.identities import Identities, Issuer
from tally.order.v1 import order_pb2 as pb
from tests.integration.contract.services import OTHER_USER, Services
from tests.integration.contract.statuses import expected
from tests.integration.contract.valid_requests import fresh
from tests.integration.identity.test_every_method import as_caller, authorized
from tests.support.balances import charge
from tests.support.contract import METHODS_BY_NAME
from tests.support.coupons import issue
from tests.support.orders import create_order, pay
from tests.support.refusals import outcome, refused
from tests.support.stack import Stack

MOST = 4
PAY_MOST = 3
OPEN_MOST = 2
LIMITS = {
    # Nothing comes back while a test runs. One replica has the whole limit.
    "TALLY_RATE_LIMIT_READS": f"0.001:{MOST}",
    "TALLY_RATE_LIMIT_WRITES": f"0.001:{MOST}",
    "TALLY_RATE_LIMIT_PUBLIC": f"0.001:{MOST}",
    "TALLY_COUPON_RATE_LIMIT_ISSUE": f"0.001:{MOST}",
    "TALLY_ORDER_RATE_LIMIT_PAY": f"0.001:{PAY_MOST}",
    "TALLY_RATE_LIMIT_REPLICAS": "1",
    "TALLY_ORDER_OPEN_ORDERS_MAX": str(OPEN_MOST),
    # The tests' own address: what it sends for nobody is not counted.
    "TALLY_TRUSTED_PROXIES": "127.0.0.0/8",
}
LIMITED = expected("RESOURCE_EXHAUSTED", "RATE_LIMITED")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options(identities: Identities) -> Iterator[dict[str, Any]]:
    """One replica of the order service, whose limits a test can reach."""
    del identities  # its settings turn identity on
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            patch.setenv(name, value)
        yield {"orders": 1}


async def reason(services: Services, request: Any) -> str:
    """Why the call is refused; '' if it succeeds."""
    method = METHODS_BY_NAME[request.DESCRIPTOR.name.removesuffix("Request")]
    status = await services.status(method, request.SerializeToString())
    return "" if status is None else status.reason


# -- whom it limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "most"),
    [
        *((name, MOST) for name in ("GetBalance", "ListOrders", "WatchOrder", "SetCartItem")),
        ("IssueCoupon", MOST),
        ("PayOrder", PAY_MOST),
    ],
)
async def test_a_users_calls_of_each_method_are_limited(
    services: Services, issuer: Issuer, name: str, most: int
) -> None:
    """Before the limit it may be refused for what it asks; above it nothing is read or written."""
    user_id = fresh()
    user = as_caller(services, issuer.token(user_id))
    request = services.valid(name)
    request.user_id = user_id
    if request.DESCRIPTOR.fields_by_name.get("request_id"):
        reasons = []
        for _ in range(most):
            request.request_id = fresh()
            reasons.append(await reason(user, request))
    else:
        reasons = [await reason(user, request) for _ in range(most)]
    assert "RATE_LIMITED" not in reasons
    async with services.unchanged():
        assert await user.differences(request, LIMITED) == []
    # Others call as before.
    request.user_id = OTHER_USER
    other = as_caller(services, issuer.token(OTHER_USER))
    assert await reason(other, request) != "RATE_LIMITED"


@pytest.mark.parametrize(("subject", "role"), [("olga", "operator"), ("till", "service")])
async def test_services_and_operators_are_not_limited(
    services: Services, issuer: Issuer, subject: str, role: str
) -> None:
    caller = as_caller(services, issuer.token(subject, role))
    for _ in range(3 * MOST):
        assert await reason(caller, services.valid("ChargeBalance", request_id=fresh())) == ""


async def test_the_limit_comes_after_access(services: Services, issuer: Issuer) -> None:
    """Calls that are not permitted use up nothing, and nobody hears of another's limit."""
    user_id = fresh()
    stranger = as_caller(services, issuer.token(OTHER_USER))
    request = services.valid("GetCart", user_id=user_id)
    for _ in range(2 * MOST):
        assert await reason(stranger, request) == "NOT_PERMITTED"
    user = as_caller(services, issuer.token(user_id))
    assert [await reason(user, request) for _ in range(MOST + 1)] == [""] * MOST + ["RATE_LIMITED"]
    assert await reason(stranger, request) == "NOT_PERMITTED"


async def test_a_users_own_saga_is_not_limited(
    services: Services, stack: Stack, issuer: Issuer
) -> None:
    """Its calls are the order service's, however many payments of the user there are."""
    user_id = await stack_user(services)
    operator = services
    user = as_caller(services, issuer.token(user_id))
    for number in range(2 * MOST):
        made = await operator.call(create_order(user_id, {services.seed.products[1]: 1}, fresh()))
        payer = user if number < PAY_MOST else operator
        paid = await payer.call(pay(made.order))
        assert paid.order.state == pb.Order.STATE_PAID
    assert stack.wire.calls.count("deduct_balance") >= 2 * MOST


async def stack_user(services: Services) -> str:
    """A user with enough in the account."""
    user_id = fresh()
    await services.call(charge(user_id, 1_000_000, fresh()))
    return user_id


# -- public methods --------------------------------------------------------------------------------


async def test_public_methods_are_limited_by_the_clients_address(services: Services) -> None:
    method = METHODS_BY_NAME["GetProduct"]
    raw = services.valid("GetProduct").SerializeToString()
    call: Any = authorized(services)["order"].channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}"
    )

    async def ends(address: str | None, calls: int) -> list[str]:
        metadata = () if address is None else ((FORWARDED_FOR, f"1.2.3.4, {address}"),)
        found = [await outcome(call(raw, metadata=metadata)) for _ in range(calls)]
        return [end if isinstance(end, str) else "" for end in found]

    assert await ends("203.0.113.5", MOST + 2) == [""] * MOST + ["RATE_LIMITED"] * 2
    assert await ends("203.0.113.6", 1) == [""]
    # Of IPv6, the first half is an address: the rest is the client's own choice.
    found = [(await ends(f"2001:db8::{each}", 1))[0] for each in range(1, MOST + 2)]
    assert found == [""] * MOST + ["RATE_LIMITED"]
    # A proxy's own calls are for nobody.
    assert await ends(None, 3 * MOST) == [""] * 3 * MOST


# -- guessing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", ["GetCoupon", "IssueCoupon"])
async def test_guessing_coupons_is_limited(services: Services, issuer: Issuer, guess: str) -> None:
    """Of a coupon's id, or of a campaign's: the user gets so many tries, whatever they find."""
    user_id = fresh()
    user = as_caller(services, issuer.token(user_id))

    def request() -> Any:
        if guess == "GetCoupon":
            return services.valid("GetCoupon", coupon_id=new_id(), user_id=user_id)
        return issue(new_id(), user_id, fresh())

    reasons = [await reason(user, request()) for _ in range(3 * MOST)]
    missing = {"GetCoupon": "COUPON_NOT_FOUND", "IssueCoupon": "CAMPAIGN_NOT_FOUND"}[guess]
    assert reasons == [missing] * MOST + ["RATE_LIMITED"] * 2 * MOST


async def test_probing_payment_keys_is_limited(
    services: Services, stack: Stack, issuer: Issuer
) -> None:
    """The refusal tells a key that somebody has paid with: so many tries, and no more sagas."""
    user_id = fresh()
    made = await services.call(create_order(user_id, {services.seed.products[0]: 1}, fresh()))
    user = as_caller(services, issuer.token(user_id))

    def probe() -> pb.PayOrderRequest:
        return pay(made.order, payment_key=services.seed.payment_keys[0])

    reasons = [await reason(user, probe()) for _ in range(PAY_MOST)]
    assert reasons == ["PAYMENT_KEY_USED"] * PAY_MOST
    stack.wire.calls.clear()
    async with services.unchanged():
        assert await user.differences(probe(), LIMITED) == []
    assert stack.wire.calls == []


async def test_guessing_coupons_while_paying_is_limited(services: Services, issuer: Issuer) -> None:
    user_id = fresh()
    made = await services.call(create_order(user_id, {services.seed.products[0]: 1}, fresh()))
    user = as_caller(services, issuer.token(user_id))
    reasons = [await reason(user, pay(made.order, coupon_id=new_id())) for _ in range(PAY_MOST + 2)]
    assert reasons == ["COUPON_NOT_FOUND"] * PAY_MOST + ["RATE_LIMITED"] * 2


# -- open orders -----------------------------------------------------------------------------------


async def test_a_user_has_so_many_open_orders_and_operators_order_on(
    services: Services, issuer: Issuer
) -> None:
    user_id = fresh()
    user = as_caller(services, issuer.token(user_id))
    lines = {services.seed.products[2]: 1}
    made = [await user.call(create_order(user_id, lines, fresh())) for _ in range(OPEN_MOST)]
    with refused("OPEN_ORDERS_LIMIT") as ended:
        await user.call(create_order(user_id, lines, fresh()))
    [quota] = ended.refusal.quota
    assert quota.subject == f"orders:{user_id}"
    assert quota.description == f"{OPEN_MOST} orders are open, {OPEN_MOST} may be"
    assert (await services.call(create_order(user_id, lines, fresh()))).order.order_id
    cancelled = services.valid("CancelOrder", request_id=fresh(), user_id=user_id)
    for order in made:
        cancelled.order_id, cancelled.request_id = order.order.order_id, fresh()
        await user.call(cancelled)
    assert (await user.call(create_order(user_id, lines, fresh()))).order.order_id
