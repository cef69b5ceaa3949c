"""The baseline: a bare grpc.aio server on uvloop with one method, bytes in and bytes out.

It parses, validates, stores and counts nothing: no Python gRPC method can be cheaper.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

METHOD = "/empty/Call"


class _Handlers(grpc.GenericRpcHandler):
    async def call(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        return b""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self.call)


async def main(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Handlers(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
