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
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from common.rpc.server import GrpcServer
from deploy.load import nginx
from deploy.local.errors import RunnerError
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2, payment_pb2_grpc
from tally_client import NoAnswer, Tally, TallyError
from tests.integration.common import echo
from tests.integration.load.stand_ins import Payments, refuse, serving
from tests.support.fake_server import Received, TcpProxy, fake_server

needs_nginx = pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
REQUEST = payment_pb2.ConfirmPaymentRequest(payment_key="key", request_id="request")
CALL_LIMIT_S = 30.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2_FRAME_HEADER = 9
HTTP2_HEADERS = 1


@asynccontextmanager
async def nginx_channel(
    service: str, replicas: Sequence[str], tmp_path: Path
) -> AsyncIterator[grpc.aio.Channel]:
    services = {service: replicas}
    with nginx.round_robin(services, tmp_path / "nginx", tmp_path / "nginx.log") as front:
        async with grpc.aio.insecure_channel(front[service][0]) as channel:
            yield channel


@asynccontextmanager
async def through_nginx(replicas: Sequence[str], tmp_path: Path) -> AsyncIterator[Any]:
    async with nginx_channel("payment", replicas, tmp_path) as channel:
        yield payment_pb2_grpc.PaymentServiceStub(channel)


async def confirm(stub: Any, **options: Any) -> str:
    """Confirm; the name of the replica that answered."""
    call = stub.ConfirmPayment(REQUEST, timeout=CALL_LIMIT_S, **options)
    await call
    return str(dict(await call.trailing_metadata())["tally-replica"])


async def refusal(stub: Any, request: Any = REQUEST) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.ConfirmPayment(request, timeout=CALL_LIMIT_S)
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


class Refusing:
    """Refuses with a text as long as the payment key."""

    async def confirm_payment(self, request: Any, context: Any) -> Any:
        self.deadline_s = context.time_remaining()
        self.metadata = dict(context.invocation_metadata())
        length = len(request.payment_key)
        await refuse(context, code_pb2.ABORTED, "PAYMENT_IN_PROGRESS", text="x" * length)


@needs_nginx
@pytest.mark.parametrize("length", [1, 5000])
async def test_refusal_arrives_complete(tmp_path: Path, length: int) -> None:
    async with (
        serving(Refusing()) as addresses,
        through_nginx(addresses, tmp_path) as stub,
    ):
        request = payment_pb2.ConfirmPaymentRequest(payment_key="k" * length)
        error = await refusal(stub, request)
    assert error.code() == grpc.StatusCode.ABORTED
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has all attributes that are read
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, len(info.metadata["text"])) == ("PAYMENT_IN_PROGRESS", length)


@needs_nginx
async def test_deadline_and_metadata_arrive(tmp_path: Path) -> None:
    servicer = Refusing()
    async with (
        serving(servicer) as addresses,
        through_nginx(addresses, tmp_path) as stub,
    ):
        metadata = (("traceparent", "00-1-2-01"), ("with_underscore.and.dots", "kept"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ConfirmPayment(REQUEST, timeout=CALL_LIMIT_S, metadata=metadata)
    assert 0 < servicer.deadline_s <= CALL_LIMIT_S
    assert dict(metadata).items() <= servicer.metadata.items()


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


@asynccontextmanager
async def echo_server(
    say: Any, count: Any, **changes: Any
) -> AsyncIterator[tuple[GrpcServer, str]]:
    """A server as the services run it, with Echo; drained at the end."""
    server = GrpcServer(echo.settings(**changes), ready=echo.always_ready)
    server.mount(echo.add, echo.Echo(say, count))
    address = f"127.0.0.1:{await server.start()}"
    try:
        yield server, address
    finally:
        await server.drain()


@needs_nginx
async def test_connection_age_fails_no_call_and_drain_only_unread_ones(
    tmp_path: Path,
) -> None:
    """Both end connections by GOAWAY while calls are under way, and nginx does not check health.

    It continues to send calls to a server that stops, which resets those that it has not read.
    Their clients repeat them, and another server answers.
    """
    clients: set[str] = set()
    called = asyncio.Event()
    ending = False

    async def say(request: Any, context: Any) -> Any:
        clients.add(context.peer())
        called.set()
        await asyncio.sleep(0.05)
        return request

    async def seen(connections: int) -> None:
        while len(clients) < connections:
            called.clear()
            await called.wait()

    quick = {"max_connection_age_s": 1.0, "grace_s": 10.0, "drain_delay_s": 0.0}
    async with (
        echo_server(say, None, **quick) as (drained, first),
        echo_server(say, None, **quick) as (_, second),
        nginx_channel("echo", [first, second], tmp_path) as channel,
    ):
        stub = echo.EchoStub(channel)
        cut_off: list[grpc.StatusCode] = []

        async def call_again_and_again() -> None:
            while not ending:
                try:
                    await stub.Say(StringValue(value="a"), timeout=CALL_LIMIT_S)
                except grpc.aio.AioRpcError as error:
                    cut_off.append(error.code())

        async with asyncio.timeout(2 * CALL_LIMIT_S), asyncio.TaskGroup() as callers:
            for _ in range(8):
                callers.create_task(call_again_and_again())
            # More connections than callers: all of the first ones have been replaced.
            await seen(5 * 8)
            assert not cut_off
            await drained.drain()
            await seen(len(clients) + 8)
            ending = True
    assert set(cut_off) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


@needs_nginx
async def test_stream_of_a_dead_replica_ends_without_an_answer(tmp_path: Path) -> None:
    received = Received()

    async def states(_: Any) -> AsyncIterator[Any]:
        yield order_pb2.WatchOrderResponse(
            order=order_pb2.Order(version=received.attempts["WatchOrder"])
        )
        if received.attempts["WatchOrder"] == 1:
            await asyncio.Event().wait()

    errors: list[TallyError] = []
    async with (
        fake_server(received, WatchOrder=states) as replica,
        TcpProxy.to(replica) as wire,
    ):
        services = {"order": [wire.address]}
        with nginx.round_robin(services, tmp_path / "nginx", tmp_path / "nginx.log") as front:
            async with Tally(order=front["order"][0], on_repeat=errors.append) as tally:
                request = order_pb2.WatchOrderRequest(order_id="o1", user_id="ada")
                watching = tally.order.watch_order(request)
                assert (await anext(watching)).order.version == 1
                wire.cut()
                # The watch resumes, though nginx resets the stream, which gRPC reports as INTERNAL.
                assert [state.order.version async for state in watching] == [2]
    assert [type(error) for error in errors] == [NoAnswer]


@needs_nginx
async def test_request_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    async with (
        serving(Payments(careless=True)) as addresses,
        through_nginx(addresses, tmp_path) as stub,
    ):
        request = payment_pb2.ConfirmPaymentRequest(payment_key="k" * (2 << 20))
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
