"""A stack whose every secret is known: four service processes at their most talkative.

``Outputs`` collects what comes out of them, and searches it for each secret in each form.
"""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import grpc
from sqlalchemy.engine import make_url

from common.rpc.status import from_rpc_error
from deploy.local.identities import Identities
from deploy.local.processes import free_port
from deploy.local.valkey import ValkeyServer
from tests.integration.start.process import Service, process
from tests.integration.start.services import variable
from tests.support.collector import Collector
from tests.support.contract import METHODS_BY_NAME, message_class
from tests.support.databases import SERVICES, StackDatabases
from tests.support.gateway_wire import LOST, Reply, Request, reply
from tests.support.time_limits import LONG_S

CANARY: Final = "c4n4ry"
"""In every secret that the tests make up."""
GATEWAY_KEY: Final = f"{CANARY}_sk/+%41="
EXPORT_KEY: Final = f"{CANARY}-of-the-collector"
BALANCE_AUDIENCE: Final = "another"
"""The balance service's, so that it refuses the token of the order service."""


def forms(secret: str) -> set[str]:
    """How a text may be written: as it is, in a URL, and as a name or password of Basic."""
    pairs = (secret, f"{secret}:", f":{secret}")
    return {
        secret,
        quote(secret, safe=""),
        *(base64.b64encode(one.encode()).decode() for one in pairs),
    }


def parts_of(token: str) -> list[str]:
    """The parts of a token that are secret: its claims, and what signs them."""
    return [part for part in token.split(".")[1:] if len(part) > 1]


@dataclass
class Outputs:
    """What came out of the stack, by where; and what must not be there."""

    texts: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    secrets: dict[str, list[str]] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    """Of all refusals."""
    sent_to_the_gateway: list[str] = field(default_factory=list)
    sent_to_the_collector: list[str] = field(default_factory=list)

    def add_token(self, name: str, token: str) -> str:
        self.secrets[name] = parts_of(token)
        return token

    def places_of(self, secret: str) -> list[str]:
        """Where the secret is, in any of its forms."""
        return [
            f"{place}: {form}"
            for place, texts in self.texts.items()
            for form in forms(secret)
            if any(form in text for text in texts)
        ]

    def found(self) -> list[str]:
        """Each secret that is somewhere."""
        return [
            f"{name} in {place}"
            for name, parts in self.secrets.items()
            for part in parts
            for place in self.places_of(part)
        ]


@dataclass
class Running:
    """The running stack, and how it is called."""

    outputs: Outputs
    services: dict[str, Service]
    channels: dict[str, grpc.aio.Channel]
    pages: dict[str, str]

    async def call(
        self,
        request: Any,
        authorization: str | None,
        *more: tuple[str, str],
        limit_s: float = LONG_S,
    ) -> Any:
        """The response, or the reason of the refusal. ``more``: other metadata."""
        method = METHODS_BY_NAME[request.DESCRIPTOR.name.removesuffix("Request")]
        service = method.containing_service
        sent = [*more]
        sent += [("authorization", authorization)] if authorization is not None else []
        call: Any = self.channels[service.file.package.split(".")[1]].unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(method.output_type).FromString,
        )
        statuses = self.outputs.texts["statuses"]
        try:
            response = await call(request, timeout=limit_s, metadata=sent)
        except grpc.aio.AioRpcError as error:
            statuses += [str(error), repr(error.trailing_metadata()), error.details() or ""]
            reason = from_rpc_error(error).reason or error.code().name
            self.outputs.reasons.add(reason)
            return reason
        statuses.append(str(response))
        return response

    async def until_logged(self, service: str, event: str) -> None:
        """Wait until the log of the service has this event."""
        running = self.services[service]
        if not any(f'"event": "{event}"' in line for line in running.lines):
            async with asyncio.timeout(LONG_S / 2):
                await running.line(event)


async def echoing(request: Request) -> Reply:
    """A gateway that fails as the payment_key says, and repeats the secret key where it can."""
    text, key = request.target + request.body.decode(), request.headers["authorization"]
    if "declined" in text:
        return reply(403, {"code": "REJECT_CARD_PAYMENT", "message": key})
    if "html" in text:
        headers = {"content-type": "text/html", "x-request": key}
        return reply(500, headers=headers, content=f"<html>{key}</html>".encode())
    if "lost" in text:
        return LOST
    if "code" in text:
        return reply(400, {"code": GATEWAY_KEY, "message": key})
    return reply(401, {"code": "UNAUTHORIZED_KEY", "message": f"{key} {GATEWAY_KEY}"})


def environment(
    service: str, databases: StackDatabases, redis_url: str, collector: Collector
) -> dict[str, str]:
    """All secret settings of a service, also those that only `migrate` and the audit need."""
    urls = databases.urls[service]
    return {
        variable(service): urls.runtime,
        variable(service, "OWNER_DATABASE_URL"): urls.owner,
        variable(service, "AUDIT_DATABASE_URL"): urls.audit,
        "TALLY_REDIS_URL": redis_url,
        "TALLY_READINESS_INTERVAL_S": "0.1",
        "TALLY_LOG_LEVEL": "debug",
        "TALLY_LOG_CALLS": "all",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={EXPORT_KEY}",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }


@dataclass
class Parts:
    """What the stack uses."""

    databases: StackDatabases
    valkey: ValkeyServer
    collector: Collector
    identities: Identities
    gateway_url: str

    def secrets(self) -> Iterator[tuple[str, str]]:
        """Each secret text that the services are given."""
        for service, urls in self.databases.urls.items():
            for role, url in vars(urls).items():
                yield f"{role}'s password of {service}", make_url(url).password or ""
        yield "the password of Redis", make_url(self.valkey.url).password or ""
        yield "the gateway's key", GATEWAY_KEY
        yield "the collector's key", EXPORT_KEY

    @asynccontextmanager
    async def running(self, outputs: Outputs) -> AsyncIterator[Running]:
        """The stack. At its end it is stopped, and its logs are in ``outputs``."""
        async with AsyncExitStack() as exits:
            running = Running(outputs, {}, {}, {})
            addresses: dict[str, str] = {}
            special = {
                "balance": {"TALLY_AUTH_AUDIENCE": BALANCE_AUDIENCE},
                "payment": {
                    "TALLY_PAYMENT_GATEWAY_URL": self.gateway_url,
                    "TALLY_PAYMENT_GATEWAY_SECRET_KEY": GATEWAY_KEY,
                },
            }
            # The order service is the last: it calls the others.
            for service in sorted(SERVICES, key=lambda name: name == "order"):
                page = free_port()
                given = self.identities.environment()
                given |= environment(service, self.databases, self.valkey.url, self.collector)
                given |= {"TALLY_METRICS_PORT": str(page), **special.get(service, {})}
                if service == "order":
                    given |= {
                        variable(service, f"{peer.upper()}_ADDRESS"): address
                        for peer, address in addresses.items()
                    }
                started = await exits.enter_async_context(process(f"{service}_service", **given))
                port = (await started.line("listening"))["port"]
                await started.line("ready")
                addresses[service] = f"127.0.0.1:{port}"
                running.services[service] = started
                running.pages[service] = f"http://127.0.0.1:{page}/metrics"
                channel = grpc.aio.insecure_channel(addresses[service])
                running.channels[service] = await exits.enter_async_context(channel)
            yield running
            for service, started in running.services.items():
                status, log = await started.stop()
                assert status == 0, service
                outputs.texts[f"log of {service}"].append(log)
