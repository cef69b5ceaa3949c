"""The gateway simulator as a process, over its HTTP protocol.

Keys with ``error_``, ``…_after_charge_`` and ``slow_`` are tested with the payment service.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.gateway.simulator import GatewaySimulator

CALLERS = 20


@dataclass(frozen=True)
class Merchant:
    """A client with the secret key, and the simulator's own record."""

    client: httpx.AsyncClient
    simulator: GatewaySimulator

    async def confirm(
        self, payment_key: str, idempotency_key: str = "", **changes: Any
    ) -> httpx.Response:
        body = {"paymentKey": payment_key, "orderId": "order-1", "amount": 15_000, **changes}
        headers = {"Idempotency-Key": idempotency_key or f"key-of-{payment_key}"}
        return await self.client.post("/v1/payments/confirm", json=body, headers=headers)

    async def find(self, payment_key: str) -> httpx.Response:
        return await self.client.get(f"/v1/payments/{payment_key}")

    async def cancel(
        self, payment_key: str, idempotency_key: str, **changes: Any
    ) -> httpx.Response:
        return await self.client.post(
            f"/v1/payments/{payment_key}/cancel",
            json={"cancelReason": "changed my mind", **changes},
            headers={"Idempotency-Key": idempotency_key},
        )

    async def until_charged(self, payment_key: str) -> None:
        async with asyncio.timeout(30):
            while (await self.find(payment_key)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def record(self, payment_key: str) -> dict[str, Any]:
        """What the simulator has recorded of the payment_key."""
        recorded: dict[str, Any] = self.simulator.charges()[payment_key]
        return recorded


@pytest.fixture
async def merchant(simulator: GatewaySimulator) -> AsyncIterator[Merchant]:
    async with httpx.AsyncClient(
        base_url=simulator.url, auth=(simulator.secret_key, ""), timeout=20, trust_env=False
    ) as client:
        yield Merchant(client, simulator)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"code", "message"}
    return answer.status_code, body["code"]


async def test_charge_is_returned_recorded_and_found(merchant: Merchant) -> None:
    answer = await merchant.confirm("plain-1")
    payment = answer.json()
    assert answer.status_code == 200
    assert payment["status"] == "DONE"
    assert (payment["paymentKey"], payment["orderId"]) == ("plain-1", "order-1")
    assert (payment["totalAmount"], payment["balanceAmount"]) == (15_000, 15_000)
    assert payment["currency"] == "KRW"
    assert payment["lastTransactionKey"]
    assert payment["approvedAt"]
    assert (await merchant.find("plain-1")).json() == payment
    assert merchant.record("plain-1") == {
        "paymentKey": "plain-1",
        "confirmCalls": 1,
        "cancelCalls": 0,
        "payment": payment,
    }


async def test_other_currency_is_accepted(merchant: Merchant) -> None:
    answer = await merchant.confirm("dollars", currency="USD", amount=10**15)
    assert (answer.json()["currency"], answer.json()["totalAmount"]) == ("USD", 10**15)


async def test_decline_is_final_and_not_charged(merchant: Merchant) -> None:
    assert refusal(await merchant.confirm("decline_1")) == (403, "REJECT_CARD_PAYMENT")
    assert refusal(await merchant.confirm("decline_1")) == (403, "REJECT_CARD_PAYMENT")
    again = await merchant.confirm("decline_1", "another-key")
    assert refusal(again) == (400, "ALREADY_PROCESSED_PAYMENT")
    payment = (await merchant.find("decline_1")).json()
    assert payment["status"] == "ABORTED"
    assert payment["failure"]["code"] == "REJECT_CARD_PAYMENT"
    assert payment["approvedAt"] is None
    assert merchant.record("decline_1")["confirmCalls"] == 3


async def test_idempotency_key_gets_its_first_response_for_any_body(merchant: Merchant) -> None:
    first = await merchant.confirm("one", "shared")
    other = await merchant.confirm("two", "shared", orderId="order-2", amount=1)
    assert other.json() == first.json()
    assert merchant.record("two")["payment"] is None
    # A key is scoped by address: a cancel with the same key is another request.
    assert (await merchant.cancel("one", "shared")).json()["status"] == "CANCELED"


async def test_concurrent_calls_with_one_idempotency_key_charge_once(merchant: Merchant) -> None:
    answers = await asyncio.gather(*(merchant.confirm("hot", "one-key") for _ in range(CALLERS)))
    kinds = Counter(answer.status_code for answer in answers)
    assert kinds[200] >= 1
    assert set(kinds) <= {200, 409}
    assert len({a.json()["lastTransactionKey"] for a in answers if a.status_code == 200}) == 1
    busy = [answer for answer in answers if answer.status_code == 409]
    assert {refusal(answer)[1] for answer in busy} <= {"IDEMPOTENT_REQUEST_PROCESSING"}
    assert merchant.record("hot")["confirmCalls"] == CALLERS


async def test_concurrent_calls_with_one_payment_key_charge_once(merchant: Merchant) -> None:
    answers = await asyncio.gather(*(merchant.confirm("hot", f"key-{n}") for n in range(CALLERS)))
    kinds = Counter(answer.status_code for answer in answers)
    assert kinds == {200: 1, 400: CALLERS - 1}
    assert merchant.record("hot")["confirmCalls"] == CALLERS


async def test_cancel_refunds_once(merchant: Merchant) -> None:
    await merchant.confirm("back")
    done = await merchant.cancel("back", "c-1")
    again = await merchant.cancel("back", "c-1")
    other = await merchant.cancel("back", "c-2")
    payment = done.json()
    assert (payment["status"], payment["balanceAmount"]) == ("CANCELED", 0)
    assert [entry["cancelAmount"] for entry in payment["cancels"]] == [15_000]
    assert again.json() == payment
    assert refusal(other) == (400, "ALREADY_CANCELED_PAYMENT")
    assert merchant.record("back")["payment"] == payment
    assert merchant.record("back")["cancelCalls"] == 3


async def test_partial_cancels_never_refund_more_than_the_charge(merchant: Merchant) -> None:
    await merchant.confirm("parts")
    part = await merchant.cancel("parts", "c-1", cancelAmount=10_000)
    too_much = await merchant.cancel("parts", "c-2", cancelAmount=5_001)
    rest = await merchant.cancel("parts", "c-3", cancelAmount=5_000)
    assert (part.json()["status"], part.json()["balanceAmount"]) == ("PARTIAL_CANCELED", 5_000)
    assert refusal(too_much) == (403, "NOT_CANCELABLE_AMOUNT")
    assert (rest.json()["status"], rest.json()["balanceAmount"]) == ("CANCELED", 0)


async def test_only_charges_can_be_cancelled(merchant: Merchant) -> None:
    await merchant.confirm("decline_2")
    declined = await merchant.cancel("decline_2", "c-1")
    assert refusal(declined) == (403, "NOT_CANCELABLE_PAYMENT")
    assert refusal(await merchant.cancel("absent", "c-2")) == (404, "NOT_FOUND_PAYMENT")


async def test_a_virtual_account_is_closed_or_deposited(
    simulator: GatewaySimulator, merchant: Merchant
) -> None:
    for key in ("deposit_closed", "deposit_paid"):
        opened = (await merchant.confirm(key)).json()
        assert (opened["status"], opened["approvedAt"]) == ("WAITING_FOR_DEPOSIT", None)
    closed = (await merchant.cancel("deposit_closed", "c-1")).json()
    assert (closed["status"], closed["approvedAt"], closed["cancels"]) == ("CANCELED", None, None)
    again = await merchant.cancel("deposit_closed", "c-2")
    assert refusal(again) == (400, "ALREADY_CANCELED_PAYMENT")
    simulator.deposit("deposit_paid")
    paid = (await merchant.find("deposit_paid")).json()
    assert (paid["status"], paid["balanceAmount"]) == ("DONE", 15_000)
    assert refusal(await merchant.cancel("deposit_paid", "c-1")) == (403, "NOT_CANCELABLE_PAYMENT")


async def test_refunds_in_the_dashboard_are_recorded_apart(
    simulator: GatewaySimulator, merchant: Merchant
) -> None:
    await merchant.confirm("no_refund_1")
    assert refusal(await merchant.cancel("no_refund_1", "c-1")) == (403, "NOT_CANCELABLE_PAYMENT")
    simulator.refund_in_dashboard("no_refund_1", 4_000)
    part = (await merchant.find("no_refund_1")).json()
    assert (part["status"], part["balanceAmount"]) == ("PARTIAL_CANCELED", 11_000)
    simulator.refund_in_dashboard("no_refund_1")
    await merchant.confirm("plain")
    await merchant.cancel("plain", "c-1")
    assert simulator.dashboard_refunds() == {"no_refund_1": 15_000}


async def test_a_confirm_that_is_lost_once_is_charged_when_repeated(merchant: Merchant) -> None:
    assert (await merchant.confirm("error_once_1")).status_code == 500
    assert refusal(await merchant.find("error_once_1")) == (404, "NOT_FOUND_PAYMENT")
    assert (await merchant.confirm("error_once_1")).json()["status"] == "DONE"


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 0},
        {"amount": -1},
        {"amount": 1.5},
        {"amount": True},
        {"amount": "100"},
        {"amount": 10**15 + 1},
        {"paymentKey": ""},
        {"paymentKey": "k" * 201},
        {"orderId": None},
        {"currency": "won"},
    ],
)
async def test_invalid_field_is_refused_and_records_nothing(
    simulator: GatewaySimulator, merchant: Merchant, change: dict[str, Any]
) -> None:
    answer = await merchant.confirm("bad-body", **change)
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert simulator.charges() == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 50_000, b" " * 70_000])
async def test_malformed_body_is_refused(merchant: Merchant, content: bytes) -> None:
    answer = await merchant.client.post("/v1/payments/confirm", content=content)
    assert refusal(answer) == (400, "INVALID_REQUEST")


async def test_too_long_idempotency_key_is_refused(merchant: Merchant) -> None:
    answer = await merchant.confirm("plain", "k" * 301)
    assert refusal(answer) == (400, "INVALID_IDEMPOTENCY_KEY")


@pytest.mark.parametrize("path", ["/v1/payments/any", "/_simulator/charges"])
async def test_without_the_secret_key_every_call_is_refused(
    simulator: GatewaySimulator, path: str
) -> None:
    async with httpx.AsyncClient(base_url=simulator.url, trust_env=False) as stranger:
        assert refusal(await stranger.get(path)) == (401, "UNAUTHORIZED_KEY")
        assert refusal(await stranger.get(path, auth=("", ""))) == (401, "UNAUTHORIZED_KEY")


async def test_returned_results_survive_kill_9(
    simulator: GatewaySimulator, merchant: Merchant
) -> None:
    for number in range(20):
        await merchant.confirm(f"kept-{number}")
    await merchant.cancel("kept-0", "c-1")
    before = simulator.charges()
    simulator.kill()
    simulator.start()
    assert simulator.charges() == before
    replayed = await merchant.confirm("kept-1")
    assert replayed.json() == before["kept-1"]["payment"]


async def test_kill_9_between_charge_and_reply_leaves_one_charge(
    simulator: GatewaySimulator, merchant: Merchant
) -> None:
    call = asyncio.create_task(merchant.confirm("timeout_after_charge_2"))
    await merchant.until_charged("timeout_after_charge_2")
    before = simulator.charges()
    simulator.kill()
    with pytest.raises(httpx.TransportError):
        await call
    simulator.start()
    again = await merchant.confirm("timeout_after_charge_2")
    assert again.json()["status"] == "DONE"
    assert again.json() == before["timeout_after_charge_2"]["payment"]
    assert list(simulator.charges()) == ["timeout_after_charge_2"]


async def test_sigterm_ends_it_cleanly_during_a_call(
    simulator: GatewaySimulator, merchant: Merchant
) -> None:
    call = asyncio.create_task(merchant.confirm("timeout_after_charge_3"))
    await merchant.until_charged("timeout_after_charge_3")
    child = simulator.child
    await asyncio.to_thread(simulator.stop)
    assert child is not None
    assert child.exit_code() == 0
    outcome = (await asyncio.gather(call, return_exceptions=True))[0]
    if isinstance(outcome, httpx.Response):
        assert outcome.status_code == 504
    else:
        assert isinstance(outcome, httpx.TransportError)


async def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of a gateway that cannot start, and its message."""
    key = tmp_path / "secret"
    key.write_text("test_sk_any")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local.gateway", "--secret-key-file", str(key), *arguments),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, stderr.decode()


async def test_port_in_use_is_reported(simulator: GatewaySimulator, tmp_path: Path) -> None:
    port = simulator.url.rpartition(":")[2]
    ended = await run(tmp_path, "--port", port, "--data-file", str(tmp_path / "b.db"))
    message = f"gateway: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert ended == (2, message)


async def test_damaged_data_file_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, though long enough to be looked at" * 100)
    ended = await run(tmp_path, "--data-file", str(broken))
    assert ended == (2, f"gateway: cannot use {broken}: file is not a database\n")
