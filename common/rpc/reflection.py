"""gRPC reflection, as grpcurl needs it: v1, and v1alpha for older tools.

Python's library has v1alpha only. The messages of v1 are the same in another package. Their
description, which clients may ask for like any other, is made from that of v1alpha. And it finds no
method by its name, which ``grpcurl describe`` asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection, reflection_pb2

from common.rpc.handlers import Handler

METHOD: Final = "ServerReflectionInfo"
V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = reflection.SERVICE_NAME
NAMES: Final = (V1, V1ALPHA)


def handler(services: Iterable[str]) -> Handler:
    """The one method of both versions. It describes ``services``, by full name, and itself."""
    _describe_v1()
    servicer = _Reflection((*services, *NAMES))
    return grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )


class _Reflection(reflection.aio.ReflectionServicer):
    """The library's servicer, which also finds the file of a method, by ``service.method``."""

    def _file_containing_symbol(self, request: Message, fully_qualified_name: str) -> Message:
        service, _, method = fully_qualified_name.rpartition(".")
        if _is_method(service, method):
            fully_qualified_name = service
        found: Message = super()._file_containing_symbol(  # type: ignore[misc]
            request,  # the stubs do not have it
            fully_qualified_name,
        )
        return found


def _is_method(service: str, name: str) -> bool:
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return False
    return name in found.methods_by_name


def _describe_v1() -> None:
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.options.Clear()
    text = text_format.MessageToString(file).replace(".v1alpha", ".v1")
    file = text_format.Parse(text, FileDescriptorProto())
    file.name = "grpc/reflection/v1/reflection.proto"
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
