"""A file of paused methods: what its lines name, what is rejected, and when it is taken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.metrics import REGISTRY
from common.rpc import pauses
from common.rpc.pauses import BYTES_MAX, PauseFileRejected, Pauses, methods_in
from tests.support.time_limits import LONG_S

ORDER = "tally.order.v1.OrderService"
CREATE, PAY, CARTS = (
    f"/{ORDER}/CreateOrder",
    f"/{ORDER}/PayOrder",
    "/tally.order.v1.CartService/Get",
)
OWN = {ORDER: {CREATE, PAY}, "tally.order.v1.CartService": {CARTS}}


@pytest.mark.parametrize(
    ("text", "paused"),
    [
        ("", set()),
        ("\n  \n# nothing\n", set()),
        (f"{ORDER}/CreateOrder", {CREATE}),
        (f"  {CREATE}  # as in the metrics\r\n{ORDER}/PayOrder\n", {CREATE, PAY}),
        (ORDER, {CREATE, PAY}),
        (f"{ORDER}/PayOrder\n{ORDER}\ntally.order.v1.CartService", {CREATE, PAY, CARTS}),
        # Of other services, which check the name of the method.
        ("tally.balance.v1.BalanceService\ntally.payment.v1.PaymentService/Nothing", set()),
    ],
)
def test_lines_name_methods(text: str, paused: set[str]) -> None:
    assert methods_in(text.encode(), OWN) == paused


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (f"{ORDER}/CreateOrders".encode(), f"line 1: there is no {ORDER}/CreateOrders"),
        (b"# x\ntally.order.v1.OrdersService", "line 2: there is no tally.order.v1.OrdersService"),
        (b"tally.oder.v1.OrderService/PayOrder", "line 1: there is no tally.oder.v1"),
        (b"grpc.health.v1.Health/Check/x", "is neither package.Service nor"),
        (b"grpc.health.v1.Health", "line 1: there is no grpc.health.v1.Health"),
        (b"tally.order.v1.order_pb2.Order", "is neither"),
        (b"CreateOrder", "line 1: 'CreateOrder' is neither package.Service nor"),
        (f"{ORDER}.CreateOrder".encode(), "is neither"),
        (f"{ORDER}/CreateOrder {ORDER}/PayOrder".encode(), "is neither"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * (BYTES_MAX + 1), "has more than 65536 bytes"),
    ],
)
def test_a_file_that_names_nothing_is_rejected_whole(raw: bytes, reason: str) -> None:
    with pytest.raises(PauseFileRejected, match=re.escape(reason)):
        methods_in(raw, OWN)


class File:
    """A file whose reads return one content after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: Iterator[str | Exception] = iter(())
        self._last: str | Exception = ""
        self.pauses = Pauses("paused")
        self.pauses.add(ORDER, ["CreateOrder", "PayOrder"])
        monkeypatch.setattr(pauses, "_content_of", self._content)
        monkeypatch.setattr(pauses, "INTERVAL_S", 0)

    def _content(self, _file: Path) -> bytes:
        content = self._last = next(self._contents, self._last)
        if isinstance(content, Exception):
            raise content
        return content.encode()

    async def paused_after(self, *contents: str | Exception) -> list[int]:
        """How many methods are paused after each read."""
        self._contents = iter(contents)
        paused = []
        for _ in contents:
            await self.pauses.read()
            paused.append(len(self.pauses.methods))
        return paused

    async def follow(self, content: str | Exception, *, until_rejected: bool) -> None:
        """Follow the file until this content is taken or rejected."""
        self._contents = iter((content,))
        following = asyncio.create_task(self.pauses.follow())
        async with asyncio.timeout(LONG_S):
            while rejected() != until_rejected and not following.done():  # noqa: ASYNC110
                await asyncio.sleep(0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following


def rejected() -> float | None:
    return REGISTRY.get_sample_value("tally_pause_file_rejected")


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> File:
    return File(monkeypatch)


@pytest.mark.parametrize(
    ("contents", "paused"),
    [
        pytest.param([ORDER, "", ORDER], [2, 2, 2], id="truncated, then written"),
        pytest.param([ORDER, "# INC-4", f"# INC-47\n{PAY}"], [2, 2, 1], id="a comment so far"),
        pytest.param([ORDER, "", ""], [2, 2, 0], id="empty"),
        pytest.param([ORDER, "", "", ORDER], [2, 2, 0, 2], id="empty, and written again"),
        pytest.param([ORDER, "", "#", "#"], [2, 2, 2, 0], id="changed meanwhile"),
        pytest.param([ORDER, "x", "", ""], [2, 2, 2, 0], id="rejected before"),
        pytest.param([ORDER, PAY], [2, 1], id="fewer methods"),
    ],
)
async def test_all_is_resumed_when_nothing_was_paused_in_two_reads(
    file: File, contents: list[str], paused: list[int]
) -> None:
    assert await file.paused_after(*contents) == paused


@pytest.mark.parametrize("problem", ["x", RuntimeError("no thread")], ids=["content", "defect"])
async def test_a_file_that_is_not_taken_is_shown_and_followed(
    file: File, problem: str | Exception
) -> None:
    assert await file.paused_after(PAY) == [1]
    await file.follow(problem, until_rejected=True)
    assert len(file.pauses.methods) == 1
    await file.follow(ORDER, until_rejected=False)
    assert len(file.pauses.methods) == 2
