"""The gateway simulator as a process, over its HTTP protocol."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.gateway.simulator import GatewaySimulator

CALLERS = 20


async def confirm(
    merchant: httpx.AsyncClient, payment_key: str, idempotency_key: str = "", **changes: Any
) -> httpx.Response:
    body = {"paymentKey": payment_key, "orderId": "order-1", "amount": 15_000, **changes}
    headers = {"Idempotency-Key": idempotency_key or f"key-of-{payment_key}"}
    return await merchant.post("/v1/payments/confirm", json=body, headers=headers)


async def find(merchant: httpx.AsyncClient, payment_key: str) -> httpx.Response:
    return await merchant.get(f"/v1/payments/{payment_key}")


async def charged(merchant: httpx.AsyncClient, payment_key: str) -> None:
    async with asyncio.timeout(30):
        while (await find(merchant, payment_key)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def cancel(
    merchant: httpx.AsyncClient, payment_key: str, idempotency_key: str, **changes: Any
) -> httpx.Response:
    return await merchant.post(
        f"/v1/payments/{payment_key}/cancel",
        json={"cancelReason": "changed my mind", **changes},
        headers={"Idempotency-Key": idempotency_key},
    )


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"code", "message"}
    return answer.status_code, body["code"]


async def test_charge_is_returned_recorded_and_found(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    answer = await confirm(merchant, "plain-1")

    payment = answer.json()
    assert answer.status_code == 200
    assert payment["status"] == "DONE"
    assert (payment["paymentKey"], payment["orderId"]) == ("plain-1", "order-1")
    assert (payment["totalAmount"], payment["balanceAmount"]) == (15_000, 15_000)
    assert payment["currency"] == "KRW"
    assert payment["lastTransactionKey"]
    assert payment["approvedAt"]
    assert (await find(merchant, "plain-1")).json() == payment
    assert simulator.charges()["plain-1"] == {
        "paymentKey": "plain-1",
        "confirmCalls": 1,
        "cancelCalls": 0,
        "payment": payment,
    }


async def test_other_currency_is_accepted(merchant: httpx.AsyncClient) -> None:
    answer = await confirm(merchant, "dollars", currency="USD", amount=10**15)
    assert (answer.json()["currency"], answer.json()["totalAmount"]) == ("USD", 10**15)


async def test_decline_is_final_and_not_charged(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    assert refusal(await confirm(merchant, "decline_1")) == (403, "REJECT_CARD_PAYMENT")
    assert refusal(await confirm(merchant, "decline_1")) == (403, "REJECT_CARD_PAYMENT")
    again = await confirm(merchant, "decline_1", "another-key")
    assert refusal(again) == (400, "ALREADY_PROCESSED_PAYMENT")

    payment = (await find(merchant, "decline_1")).json()
    assert payment["status"] == "ABORTED"
    assert payment["failure"]["code"] == "REJECT_CARD_PAYMENT"
    assert payment["approvedAt"] is None
    assert simulator.charges()["decline_1"]["confirmCalls"] == 3


async def test_error_is_never_charged_and_declined_when_repeated(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    assert (await confirm(merchant, "error_1")).status_code == 500
    assert refusal(await find(merchant, "error_1")) == (404, "NOT_FOUND_PAYMENT")
    assert simulator.charges()["error_1"]["payment"] is None

    assert refusal(await confirm(merchant, "error_1")) == (403, "REJECT_CARD_COMPANY")
    assert (await find(merchant, "error_1")).json()["status"] == "ABORTED"


async def test_error_after_charge_has_charged(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    assert (await confirm(merchant, "error_after_charge_1")).status_code == 500
    found = await find(merchant, "error_after_charge_1")
    assert found.json()["status"] == "DONE"

    again = await confirm(merchant, "error_after_charge_1")
    assert (again.status_code, again.json()) == (200, found.json())
    assert simulator.charges()["error_after_charge_1"]["payment"] == found.json()


async def test_timeout_after_charge_does_not_answer_and_is_found(
    merchant: httpx.AsyncClient,
) -> None:
    call = asyncio.create_task(confirm(merchant, "timeout_after_charge_1"))
    await charged(merchant, "timeout_after_charge_1")
    # Five calls have ended since, so its response would have arrived by now.
    for number in range(5):
        assert (await confirm(merchant, f"plain-{number}")).status_code == 200
    assert not call.done()
    call.cancel()
    replayed = await confirm(merchant, "timeout_after_charge_1")
    assert replayed.json()["status"] == "DONE"


async def test_slow_call_takes_longer_and_charges(merchant: httpx.AsyncClient) -> None:
    finished: list[str] = []

    async def run(payment_key: str) -> None:
        assert (await confirm(merchant, payment_key)).json()["status"] == "DONE"
        finished.append(payment_key)

    await asyncio.gather(run("slow_1"), run("plain"))
    assert finished == ["plain", "slow_1"]


async def test_idempotency_key_gets_its_first_response_for_any_body(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    first = await confirm(merchant, "one", "shared")
    other = await confirm(merchant, "two", "shared", orderId="order-2", amount=1)

    assert other.json() == first.json()
    assert simulator.charges()["two"]["payment"] is None
    # A key is scoped by address: a cancel with the same key is another request.
    assert (await cancel(merchant, "one", "shared")).json()["status"] == "CANCELED"


async def test_concurrent_calls_with_one_idempotency_key_charge_once(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    answers = await asyncio.gather(*(confirm(merchant, "hot", "one-key") for _ in range(CALLERS)))

    kinds = Counter(answer.status_code for answer in answers)
    assert kinds[200] >= 1
    assert set(kinds) <= {200, 409}
    assert len({a.json()["lastTransactionKey"] for a in answers if a.status_code == 200}) == 1
    busy = [answer for answer in answers if answer.status_code == 409]
    assert {refusal(answer)[1] for answer in busy} <= {"IDEMPOTENT_REQUEST_PROCESSING"}
    assert simulator.charges()["hot"]["confirmCalls"] == CALLERS


async def test_concurrent_calls_with_one_payment_key_charge_once(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    answers = await asyncio.gather(*(confirm(merchant, "hot", f"key-{n}") for n in range(CALLERS)))

    kinds = Counter(answer.status_code for answer in answers)
    assert kinds == {200: 1, 400: CALLERS - 1}
    assert simulator.charges()["hot"]["confirmCalls"] == CALLERS


async def test_cancel_refunds_once(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    await confirm(merchant, "back")
    done = await cancel(merchant, "back", "c-1")
    again = await cancel(merchant, "back", "c-1")
    other = await cancel(merchant, "back", "c-2")

    payment = done.json()
    assert (payment["status"], payment["balanceAmount"]) == ("CANCELED", 0)
    assert [entry["cancelAmount"] for entry in payment["cancels"]] == [15_000]
    assert again.json() == payment
    assert refusal(other) == (400, "ALREADY_CANCELED_PAYMENT")
    assert simulator.charges()["back"]["payment"] == payment
    assert simulator.charges()["back"]["cancelCalls"] == 3


async def test_partial_cancels_never_refund_more_than_the_charge(
    merchant: httpx.AsyncClient,
) -> None:
    await confirm(merchant, "parts")
    part = await cancel(merchant, "parts", "c-1", cancelAmount=10_000)
    too_much = await cancel(merchant, "parts", "c-2", cancelAmount=5_001)
    rest = await cancel(merchant, "parts", "c-3", cancelAmount=5_000)

    assert (part.json()["status"], part.json()["balanceAmount"]) == ("PARTIAL_CANCELED", 5_000)
    assert refusal(too_much) == (403, "NOT_CANCELABLE_AMOUNT")
    assert (rest.json()["status"], rest.json()["balanceAmount"]) == ("CANCELED", 0)


async def test_only_charges_can_be_cancelled(merchant: httpx.AsyncClient) -> None:
    await confirm(merchant, "decline_2")
    declined = await cancel(merchant, "decline_2", "c-1")
    assert refusal(declined) == (403, "NOT_CANCELABLE_PAYMENT")
    assert refusal(await cancel(merchant, "absent", "c-2")) == (404, "NOT_FOUND_PAYMENT")


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
    simulator: GatewaySimulator, merchant: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    answer = await confirm(merchant, "bad-body", **change)
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert simulator.charges() == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 50_000, b" " * 70_000])
async def test_malformed_body_is_refused(merchant: httpx.AsyncClient, content: bytes) -> None:
    answer = await merchant.post("/v1/payments/confirm", content=content)
    assert refusal(answer) == (400, "INVALID_REQUEST")


async def test_too_long_idempotency_key_is_refused(merchant: httpx.AsyncClient) -> None:
    answer = await confirm(merchant, "plain", "k" * 301)
    assert refusal(answer) == (400, "INVALID_IDEMPOTENCY_KEY")


@pytest.mark.parametrize("path", ["/v1/payments/any", "/_simulator/charges"])
async def test_without_the_secret_key_every_call_is_refused(
    simulator: GatewaySimulator, path: str
) -> None:
    async with httpx.AsyncClient(base_url=simulator.url, trust_env=False) as stranger:
        assert refusal(await stranger.get(path)) == (401, "UNAUTHORIZED_KEY")
        assert refusal(await stranger.get(path, auth=("", ""))) == (401, "UNAUTHORIZED_KEY")


async def test_returned_results_survive_kill_9(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    for number in range(20):
        await confirm(merchant, f"kept-{number}")
    await cancel(merchant, "kept-0", "c-1")
    before = simulator.charges()

    simulator.kill()
    simulator.start()

    assert simulator.charges() == before
    replayed = await confirm(merchant, "kept-1")
    assert replayed.json() == before["kept-1"]["payment"]


async def test_kill_9_between_charge_and_reply_leaves_one_charge(tmp_path: Path) -> None:
    with GatewaySimulator(tmp_path / "gateway.db", slow_ms=60_000) as simulator:
        async with httpx.AsyncClient(
            base_url=simulator.url, auth=(simulator.secret_key, ""), timeout=90, trust_env=False
        ) as merchant:
            call = asyncio.create_task(confirm(merchant, "slow_lost"))
            await charged(merchant, "slow_lost")
            simulator.kill()
            with pytest.raises(httpx.TransportError):
                await call

            simulator.start()
            again = await confirm(merchant, "slow_lost")

        assert again.json() == simulator.charges()["slow_lost"]["payment"]
        assert again.json()["status"] == "DONE"
        with sqlite3.connect(tmp_path / "gateway.db") as record:
            assert record.execute("SELECT count(*) FROM payments").fetchone() == (1,)
        record.close()


async def test_sigterm_ends_it_cleanly_with_an_unanswered_call(
    simulator: GatewaySimulator, merchant: httpx.AsyncClient
) -> None:
    call = asyncio.create_task(confirm(merchant, "timeout_after_charge_3"))
    await charged(merchant, "timeout_after_charge_3")
    child = simulator.child
    await asyncio.to_thread(simulator.stop)
    assert child is not None
    assert child.exit_code() == 0
    outcome = (await asyncio.gather(call, return_exceptions=True))[0]
    if isinstance(outcome, httpx.Response):
        assert outcome.status_code == 504
    else:
        assert isinstance(outcome, httpx.TransportError)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.local.gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_port_in_use_is_reported_in_one_line(simulator: GatewaySimulator, tmp_path: Path) -> None:
    key = tmp_path / "secret"
    key.write_text("test_sk_any")
    port = simulator.url.rpartition(":")[2]
    ended = run(
        *("--port", port, "--data-file", str(tmp_path / "b.db"), "--secret-key-file", str(key))
    )
    assert ended.returncode == 2
    assert ended.stderr == f"gateway: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_damaged_data_file_is_reported_in_one_line(tmp_path: Path) -> None:
    key = tmp_path / "secret"
    key.write_text("test_sk_any")
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, though long enough to be looked at" * 100)
    ended = run("--data-file", str(broken), "--secret-key-file", str(key))
    assert ended.returncode == 2
    assert ended.stderr == f"gateway: cannot use {broken}: file is not a database\n"
