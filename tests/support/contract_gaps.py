"""`python -m tests.support.contract_gaps`: what a new method of the contract still lacks.

A method needs its refusals beside it (``@refuses``), a method of the client, a valid request of
which tests make bad ones, and the reply to a user without anything. A reason needs its next step
and a class of the client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from common.rpc import reasons
from deploy.errors_reference import SERVICERS, service_of
from deploy.next_steps import NEXT_STEPS
from tally_client import Tally
from tally_client.errors import BY_REASON
from tests.integration.contract import strangers
from tests.integration.contract.invalid_values import kind_of
from tests.integration.contract.valid_requests import Seed, fields_by_method
from tests.support.contract import BULK, METHODS, OF_EVERY_SERVICE, REASONS

_NO_SEED: Final = Seed(**{field.name: ["x"] * 9 for field in dataclasses.fields(Seed)})  # type: ignore[arg-type]
"""Placeholders: only the names of fields matter here."""


def gaps() -> list[str]:
    """What is missing, a line each."""
    requests = fields_by_method(_NO_SEED)
    client = asyncio.run(_client_methods())
    found = [
        f"{method.containing_service.name}/{method.name}: {gap}"
        for method in METHODS
        for gap in gaps_of(method, requests, client)
    ]
    found += [
        f"{reason}: no next step in deploy/next_steps.py"
        for reason in sorted((REASONS | OF_EVERY_SERVICE) - NEXT_STEPS.keys())
    ]
    found += [
        f"{reason}: no class in tally_client/refusals.py"
        for reason in sorted(REASONS - BY_REASON.keys())
    ]
    return found


def gaps_of(
    method: MethodDescriptor, requests: Mapping[str, object], client: Collection[tuple[str, str]]
) -> Iterator[str]:
    """What one method lacks. ``client``: the attributes of service and method in the client."""
    servicers = {service_of(each).full_name: each for each in SERVICERS}
    servicer = servicers.get(method.containing_service.full_name)
    if servicer is None:
        yield "its servicer is not in SERVICERS of deploy/errors_reference.py"
    elif not reasons.is_declared(getattr(servicer, method.name)):
        yield "no @refuses on the servicer's method"
    if attributes_of(method) not in client:
        yield "no method in tally_client/services.py"
    if method.name not in requests:
        yield "no request in tests/integration/contract/valid_requests.py"
    for field in broken_fields(method):
        try:
            kind_of(field)
        except KeyError:
            yield f"no kind of {field.name} in tests/integration/contract/invalid_values.py"
    takes_user = "user_id" in method.input_type.fields_by_name
    if takes_user and method.name not in strangers.REFUSED.keys() | strangers.SERVED:
        yield "no reply to a stranger in tests/integration/contract/strangers.py"


def broken_fields(method: MethodDescriptor) -> list[FieldDescriptor]:
    """The fields that test_bad_input breaks, one by one."""
    fields = [field for field in method.input_type.fields if field.type != field.TYPE_BOOL]
    for field in tuple(fields):
        if field.is_repeated and field.message_type is not None and method.name not in BULK:
            fields += field.message_type.fields
    return fields


def attributes_of(method: MethodDescriptor) -> tuple[str, str]:
    """The client's attributes for the method's service and for the method."""
    service = method.containing_service.name.removesuffix("Service").lower()
    return service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()


async def _client_methods() -> set[tuple[str, str]]:
    async with Tally() as tally:
        services: dict[str, Any] = vars(tally)
        return {
            (service, name)
            for service, methods in services.items()
            if not service.startswith("_")
            for name in vars(methods)
        }


def main() -> int:
    """Print what is missing; 0 if nothing is."""
    found = gaps()
    sys.stderr.writelines(f"{gap}\n" for gap in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
