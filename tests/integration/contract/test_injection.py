"""Every string of every request with texts that attack: each is refused by name, or is only data.

Ids refuse them, and nothing is written. Texts for people have them stored and returned as they are.
No part of them is in a status, begins a line of the log, or leaves its place in a command to Redis.
"""

from __future__ import annotations

import ast
import asyncio
import io
import itertools
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import pytest
import pytest_asyncio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from common import logs
from tests.integration.contract.hostile_texts import BYTES, IDS, TEXTS
from tests.integration.contract.invalid_values import kind_of
from tests.integration.contract.places import Place, places
from tests.integration.contract.services import Services
from tests.integration.contract.statuses import (
    WHOLE_REQUEST,
    ExpectedStatus,
    Status,
    invalid,
)
from tests.support.contract import every_method
from tests.support.payments import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOR_PEOPLE: Final = {"name", "reason"}
"""Texts whose only rules are their length, and that they have no control characters."""
LABELS: Final = {"labels", "seats"}
LABELS_ACCEPT: Final = ("a path", "another form of an ASCII letter")
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
OF_CONNECTIONS: Final = {"HELLO", "AUTH", "CLIENT", "SCRIPT", "SELECT", "PING", "INFO", "MONITOR"}
CLIENTS_IDS: Final = {
    *("user_id", "request_id", "deduct_request_id", "redeem_request_id", "confirm_request_id"),
    *("payment_key", "confirm_request_ids"),
}
KEY: Final = re.compile(
    r"((balance|order:create):user|payment:key):[A-Za-z0-9._:@-]{1,200}"
    r"|coupon:issue:[0-9a-f-]{36}(:\d+)?|seat:\{[0-9a-f-]{36}\}:[\w .:/-]{1,32}"
    r"|(\{\d+\}\{(fence|queue)\})?coupon:queue:\{\d+\}:[A-Za-z0-9._:@-]+"
    r"|tally:(lanes|locks):[A-Za-z0-9._:@-]+"
)
"""Every key and channel of Redis."""
_numbers = itertools.count()


# -- the log and Redis -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack_options() -> Iterator[dict[str, Any]]:
    """Every call is logged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALLY_LOG_CALLS", "all")
        yield {"orders": 1}


class Log(io.StringIO):
    """What the services of this process write to stderr."""

    def lines(self) -> list[dict[str, Any]]:
        """Its lines, each of which is a JSON object."""
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    async def has(self, calls: int) -> None:
        """Wait until it has a line for each of so many calls."""

        async def events() -> Counter[str]:
            return Counter(line["event"] for line in self.lines())

        counted = await until(events, lambda found: found["call"] >= calls)
        assert counted["forged"] == 0


@pytest.fixture
def log() -> Iterator[Log]:
    """The log as in production."""
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    written = Log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        logs.configure(service="all", replica="one", level="info", output="json")
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def only_own_keys(redis_url: str) -> AsyncIterator[None]:
    """No command of this module has another key of Redis than Tally's."""
    async with monitored(redis_url) as commands:
        yield
    keys = {key for command in commands for key in keys_of(*command)}
    assert len(keys) > 10
    assert {key for key in keys if not KEY.fullmatch(key)} == set()


def keys_of(name: str, *arguments: str) -> Sequence[str]:
    """The keys of a command of Redis."""
    match name.upper():
        case "EVALSHA" | "EVAL":
            return arguments[2 : 2 + int(arguments[1])]
        case "SET" | "GET":
            return arguments[:1]
        case "SUBSCRIBE":
            return arguments
        case other:
            assert other in OF_CONNECTIONS
            return ()


@asynccontextmanager
async def monitored(url: str) -> AsyncIterator[list[list[str]]]:
    """The commands that clients of Redis send in the block, without those of scripts."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    writer.write(f"AUTH {parts.password}\r\nMONITOR\r\n".encode())
    assert [await reader.readline() for _ in range(2)] == [b"+OK\r\n"] * 2
    commands: list[list[str]] = []

    async def read() -> None:
        while line := (await reader.readline()).decode():
            # Its words are quoted as Python's strings are.
            words = [ast.literal_eval(word) for word in re.findall(r'"(?:[^"\\]|\\.)*"', line)]
            if words and " lua] " not in line:
                commands.append(words)

    reading = asyncio.create_task(read())
    try:
        yield commands
    finally:
        writer.close()
        await reading


# -- texts -----------------------------------------------------------------------------------------


def accepted(place: Place) -> dict[str, str]:
    """The texts that are valid in this place, by what they are."""
    name = place.field.name
    if name in CLIENTS_IDS:
        return {text: f"{text}{next(_numbers)}" for text in IDS}
    if name in LABELS:
        return {label: TEXTS[label] for label in LABELS_ACCEPT}
    if name in FOR_PEOPLE:
        return {label: text for label, text in TEXTS.items() if not CONTROLS.search(text)}
    return TEXTS if refusal(place) is None else {}


def refusal(place: Place) -> ExpectedStatus | None:
    """How a malformed text is refused there; None if it is taken for an id of nothing."""
    if place.field.is_repeated or place.field.name in FOR_PEOPLE:
        return invalid(place.path)
    malformed = (
        expected
        for value, expected in kind_of(place.field).values(place.path)
        if value and expected != WHOLE_REQUEST
    )
    return next(malformed, None)


async def status_of(services: Services, place: Place, request: Message) -> Status | None:
    """The status of the call, or of the item that has the place; None if it succeeds."""
    try:
        response = await services.call(request)
    except grpc.aio.AioRpcError as error:
        return Status.of(error)
    return Status.of_item(response.results[0].error) if place.in_item else None


def differences(status: Status | None, expected: ExpectedStatus, text: str) -> list[str]:
    if status is None:
        return ["succeeded"]
    echoes = [f"echoes it in {one!r}" for one in status.texts() if len(text) > 1 and text in one]
    return status.differences(expected) + echoes


def kind(status: Status | None) -> tuple[str, str]:
    return ("OK", "") if status is None else (status.code.name, status.reason)


@every_method
async def test_texts_that_attack_are_refused_by_name(
    services: Services, log: Log, method: MethodDescriptor
) -> None:
    found, calls = [], 0
    async with services.unchanged():
        for place in places(method, services.valid(method.name)):
            expected, valid = refusal(place), accepted(place)
            for label, text in TEXTS.items():
                if label in valid:
                    continue
                assert expected is not None
                request = place.with_text(services.valid(method.name), text)
                status = await status_of(services, place, request)
                calls += 1
                found += [
                    f"{place.path}, {label}: {each}" for each in differences(status, expected, text)
                ]
    assert found == []
    assert calls
    await log.has(calls)


@every_method
async def test_texts_that_are_accepted_are_only_data(
    services: Services, log: Log, method: MethodDescriptor
) -> None:
    """They end as a harmless text does, and write to no other table."""
    found, calls = [], 0

    async def call(place: Place, text: str) -> Status | None:
        nonlocal calls
        calls += 1
        return await status_of(services, place, place.with_text(services.valid(method.name), text))

    for place in places(method, services.valid(method.name)):
        texts = accepted(place)
        if not texts:
            continue
        before = await services.tables()
        # The first call may use up what the others then lack.
        _, harmless = [await call(place, f"harmless-{next(_numbers)}") for _ in range(2)]
        written = await services.written(before)
        before = await services.tables()
        for label, text in texts.items():
            status = await call(place, text)
            if kind(status) != kind(harmless):
                found.append(f"{place.path}, {label}: {kind(status)}, not {kind(harmless)}")
            elif status is not None and status.leaks():
                found.append(f"{place.path}, {label}: {status.leaks()}")
        more = await services.written(before) - written
        found += [f"{place.path}: written to {name}" for name in more]
    assert found == []
    await log.has(calls)


@pytest.mark.parametrize(
    ("name", "message"), [("CreateCampaign", "campaign"), ("CreateProduct", "product")]
)
async def test_a_name_is_stored_and_returned_as_it_is(
    services: Services, name: str, message: str
) -> None:
    read = name.replace("Create", "Get")
    for text in filter(lambda each: not CONTROLS.search(each), TEXTS.values()):
        create = services.valid(name)
        create.name = text
        created = getattr(await services.call(create), message)
        id_field = f"{message}_id"
        request = services.valid(read, **{id_field: getattr(created, id_field)})
        assert getattr(await services.call(request), message).name == created.name == text


@every_method
async def test_bytes_that_are_no_text_are_refused(
    services: Services, method: MethodDescriptor
) -> None:
    """In every string, also those of messages in messages: the whole request is refused."""
    found = []
    async with services.unchanged():
        for place in places(method, services.valid(method.name)):
            for label, raw in BYTES.items():
                held = "~" * len(raw)
                request = place.with_text(services.valid(method.name), held).SerializeToString()
                assert request.count(held.encode()) == 1
                broken = request.replace(held.encode(), raw)
                differing = await services.raw_differences(method, broken, WHOLE_REQUEST)
                found += [f"{place.path}, {label}: {each}" for each in differing]
    assert found == []
