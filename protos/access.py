"""Checks that every RPC says whom it admits (``tally.options.v1.access``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from tally.options.v1 import access_pb2


def problems(services: Iterable[ServiceDescriptor]) -> list[str]:
    """What is wrong with the access of the services' methods, a line each."""
    return [
        f"{method.full_name}: {problem}"
        for service in services
        for method in service.methods
        for problem in _problems_of(method)
    ]


def _problems_of(method: MethodDescriptor) -> Iterator[str]:
    callers = list(method.GetOptions().Extensions[access_pb2.access])
    if not callers:
        yield "has no option (tally.options.v1.access): say whom it admits"
    if access_pb2.CALLER_UNSPECIFIED in callers or len(set(callers)) < len(callers):
        yield "access is a set of callers: none is unspecified or named twice"
    if access_pb2.CALLER_PUBLIC in callers and len(callers) > 1:
        yield "CALLER_PUBLIC admits everyone and stands alone"
    if access_pb2.CALLER_USER in callers and "user_id" not in method.input_type.fields_by_name:
        yield "CALLER_USER acts for its subject only, and the request has no user_id"
