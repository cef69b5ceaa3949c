"""gRPC reflection, as grpcurl and its like need it: v1, and v1alpha for the older of them.

Python's library has v1alpha only. In v1 the messages are the same under another package, and its
description, which clients may ask for as for any other service's, is made of the older one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

METHOD: Final = "ServerReflectionInfo"
V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = reflection.SERVICE_NAME
NAMES: Final = (V1, V1ALPHA)


def handler(services: Iterable[str]) -> grpc.RpcMethodHandler[Any, Any]:
    """The one method of both versions; it tells of ``services``, by full name, and of itself."""
    _describe_v1()
    servicer: Any = reflection.aio.ReflectionServicer((*services, *NAMES))
    return grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )


def _describe_v1() -> None:
    described = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(described)
    described.options.Clear()
    text = text_format.MessageToString(described).replace(".v1alpha", ".v1")
    described = text_format.Parse(text, FileDescriptorProto())
    described.name = "grpc/reflection/v1/reflection.proto"
    descriptor_pool.Default().AddSerializedFile(described.SerializeToString())
