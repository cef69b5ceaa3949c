"""Reads the golden files of a release, and makes the calls in them.

``<service>.rows.jsonl``: a row of a table per line. ``<service>.calls.jsonl``: a call on those rows
and its reply. ``unfinished.calls.jsonl``: calls that were under way, and the state or the reason
that each ends with.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc
import httpx
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message

# Imported for the pool of descriptors: a refusal's details are read by their type's name.
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # noqa: F401

from common.metrics import REGISTRY
from deploy.local.gateway.simulator import GatewaySimulator
from tests.support.databases import SERVICES, StackDatabases
from tests.support.stack import Stack
from tests.support.time_limits import LONG_S

GOLDEN: Final = Path(__file__).parents[2] / "golden"
RELEASES: Final = sorted(path for path in GOLDEN.iterdir() if path.is_dir())

Record = dict[str, Any]
Labels = tuple[str, frozenset[tuple[str, str]]]
"""A sample of a metric: its name and its labels."""


def labels(sample: str, **values: str) -> Labels:
    return sample, frozenset(values.items())


def exported() -> set[Labels]:
    """Every sample of this process that has counted something."""
    return {
        labels(sample.name, **sample.labels)
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.value
    }


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorded_calls(release: Path) -> list[Record]:
    return [call for service in SERVICES for call in read(release / f"{service}.calls.jsonl")]


async def load(release: Path, databases: StackDatabases) -> None:
    """Insert the rows of every service into its own database."""
    for service in SERVICES:
        rows = read(release / f"{service}.rows.jsonl")
        connection = await asyncpg.connect(databases.urls[service].owner)
        try:
            for table, group in itertools.groupby(rows, key=lambda row: row["table"]):
                inserted = [row["row"] for row in group]
                # Columns that a later release added get their defaults.
                columns = ", ".join(inserted[0])
                await connection.execute(
                    f"INSERT INTO {table} ({columns}) SELECT {columns}"
                    f" FROM json_populate_recordset(NULL::{table}, $1)",
                    json.dumps(inserted),
                )
        finally:
            await connection.close()


def confirmed_payments(release: Path) -> Iterator[Record]:
    """The payments that the release's gateway has charged and not paid back."""
    for line in read(release / "payment.rows.jsonl"):
        if line["table"] == "payments" and line["row"]["state"] == "CONFIRMED":
            yield line["row"]


class Caller:
    """Makes recorded calls, whichever service they are for."""

    def __init__(self, stack: Stack) -> None:
        shop = stack.shop
        self._stubs: tuple[Any, ...] = (
            *(stack.balance, stack.coupon, stack.payment),
            *(shop.products, shop.carts, shop.orders, stack.sagas),
        )

    async def reply(self, record: Record) -> Record:
        """The response of a recorded request, or its refusal, as the files hold them."""
        method = method_of(record)
        request = _message(method.input_type, record["request"])
        stub: Any = next(stub for stub in self._stubs if hasattr(stub, method.name))
        try:
            return {"response": _fields(await getattr(stub, method.name)(request, timeout=LONG_S))}
        except grpc.aio.AioRpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
            return {"refusal": _fields(status)}


def method_of(record: Record) -> MethodDescriptor:
    service, _, name = record["call"].partition("/")
    found: MethodDescriptor = Default().FindServiceByName(service).methods_by_name[name]
    return found


def response(record: Record) -> Message | None:
    """The recorded response; None if the call was refused."""
    if "response" not in record:
        return None
    return _message(method_of(record).output_type, record["response"])


def _message(descriptor: Descriptor, fields: Record) -> Message:
    return json_format.ParseDict(fields, message_factory.GetMessageClass(descriptor)())


def _fields(message: Any) -> Record:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def words_dropped(refusal: Record) -> Record:
    """The refusal without its texts, which are stored only with the replies of PayOrder."""
    details = [
        {
            name: [
                {key: text for key, text in item.items() if key != "description"} for item in value
            ]
            if name in {"violations", "field_violations"}
            else value
            for name, value in detail.items()
        }
        for detail in refusal["details"]
    ]
    return {"code": refusal["code"], "details": details}


def charge(gateway: GatewaySimulator, payment: Record) -> None:
    """Charge a payment at the gateway, as the release did at its own."""
    body = {
        "paymentKey": payment["payment_key"],
        "orderId": payment["order_id"],
        "amount": payment["amount_minor"],
        "currency": payment["currency_code"],
    }
    with httpx.Client(auth=(gateway.secret_key, ""), trust_env=False) as client:
        client.post(f"{gateway.url}/v1/payments/confirm", json=body).raise_for_status()
