"""nginx between clients and replicas: round robin, what it forwards, and how failures arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from common.errors import Code, RemoteRefusal
from common.rpc.status import from_rpc_error
from deploy.load import nginx
from deploy.local.errors import RunnerError
from tally.payment.v1 import payment_pb2_grpc
from tests.integration.load.stand_ins import Payments, serving
from tests.support import payments
from tests.support.fake_server import Received, fake_server

needs_nginx = pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
REQUEST = payments.confirm("key")
CALL_LIMIT_S = 30.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2_FRAME_HEADER = 9
HTTP2_HEADERS = 1


@asynccontextmanager
async def through_nginx(replicas: Sequence[str], tmp_path: Path) -> AsyncIterator[Any]:
    services = {"payment": replicas}
    with nginx.round_robin(services, tmp_path / "nginx", tmp_path / "nginx.log") as front:
        async with grpc.aio.insecure_channel(front["payment"][0]) as channel:
            yield payment_pb2_grpc.PaymentServiceStub(channel)


async def confirm(stub: Any) -> str:
    """Confirm; the name of the replica that answered."""
    call = stub.ConfirmPayment(REQUEST, timeout=CALL_LIMIT_S)
    await call
    return str(dict(await call.trailing_metadata())["tally-replica"])


async def refusal(stub: Any, request: Any = REQUEST, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ConfirmPayment(request, timeout=CALL_LIMIT_S, **options)
    return raised.value


@needs_nginx
async def test_replicas_get_calls_in_turn(tmp_path: Path) -> None:
    async with (
        serving(Payments(careless=True), replicas=4) as addresses,
        through_nginx(addresses, tmp_path) as stub,
    ):
        names = Counter([await confirm(stub) for _ in range(12)])
        names.update(await asyncio.gather(*(confirm(stub) for _ in range(12))))
    assert names == {f"payment-{number}": 6 for number in range(4)}


@needs_nginx
@pytest.mark.parametrize("texts", [1, 5])
async def test_call_and_refusal_arrive_complete(tmp_path: Path, texts: int) -> None:
    details = {f"text_{number}": "x" * 200 for number in range(texts)}
    refused = RemoteRefusal(Code.ABORTED, "PAYMENT_IN_PROGRESS", "No.", details)
    metadata = (("traceparent", "00-1-2-01"), ("with_underscore.and.dots", "kept"))
    received = Received()
    async with (
        fake_server(received, ConfirmPayment=[refused]) as address,
        through_nginx([address], tmp_path) as stub,
    ):
        error = from_rpc_error(await refusal(stub, metadata=metadata))
    assert (error.code, error.reason) == (Code.ABORTED, "PAYMENT_IN_PROGRESS")
    assert error.metadata == details
    assert 0 < received.left_s["ConfirmPayment"][0] <= CALL_LIMIT_S
    assert dict(metadata).items() <= received.metadata["ConfirmPayment"][0].items()


@needs_nginx
async def test_stopped_replica_is_skipped(tmp_path: Path) -> None:
    async with serving(Payments(careless=True)) as gone:
        pass
    async with (
        serving(Payments(careless=True), replicas=2) as addresses,
        through_nginx([*gone, *addresses], tmp_path) as stub,
    ):
        names = {await confirm(stub) for _ in range(12)}
    assert names == {"payment-0", "payment-1"}


@needs_nginx
async def test_without_a_replica_the_service_is_unavailable(tmp_path: Path) -> None:
    async with serving(Payments(careless=True)) as gone:
        pass
    async with through_nginx(gone, tmp_path) as stub:
        error = await refusal(stub)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "No replica took the call, or the one that did went away."


@needs_nginx
async def test_call_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    """Each replica accepts the call and closes the connection, as a killed one does."""
    reached = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        await reader.readexactly(len(HTTP2_PREFACE))
        while True:
            frame = await reader.readexactly(HTTP2_FRAME_HEADER)
            await reader.readexactly(int.from_bytes(frame[:3]))
            if frame[3] == HTTP2_HEADERS:
                break
        reached += 1
        writer.close()
        await writer.wait_closed()

    servers = [await asyncio.start_server(drop, "127.0.0.1", 0) for _ in range(3)]
    addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    async with through_nginx(addresses, tmp_path) as stub:
        error = await refusal(stub)
    for server in servers:
        server.close()
        await server.wait_closed()
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert reached == 1


@needs_nginx
async def test_request_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    async with (
        serving(Payments(careless=True)) as addresses,
        through_nginx(addresses, tmp_path) as stub,
    ):
        request = payments.confirm("k" * (2 << 20))
        error = await refusal(stub, request)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "The request is too large."


def test_missing_nginx_is_reported_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nginx, "SYSTEM_PATH", str(tmp_path))
    with (
        pytest.raises(RunnerError, match=r"^nginx is not installed: `apt-get install nginx`"),
        nginx.round_robin({"payment": ["127.0.0.1:1"]}, tmp_path / "nginx", tmp_path / "log"),
    ):
        pass
