"""The bare empty method, and an empty GetBalance with identity off and with identity on.

Its arguments are the three ports and the JWKS file.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import grpc
import uvloop
from pydantic import SecretStr

from balance_service.settings import BalanceSettings
from benchmarks.servers import empty_server
from common.rpc.server import GrpcServer
from deploy.local.identities import ISSUER
from tally.balance.v1 import balance_pb2 as pb

SERVICE: Final = "tally.balance.v1.BalanceService"
METHOD: Final = f"/{SERVICE}/GetBalance"


async def _get_balance(request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:  # noqa: ARG001
    return pb.GetBalanceResponse()


def _add(_servicer: object, server: Any) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        _get_balance,
        request_deserializer=pb.GetBalanceRequest.FromString,
        response_serializer=pb.GetBalanceResponse.SerializeToString,
    )
    server.add_registered_method_handlers(SERVICE, {"GetBalance": handler})


async def _ready() -> None:
    """The probe of a server that needs nothing."""


async def main(empty_port: int, open_port: int, guarded_port: int, jwks: str) -> None:
    servers = []
    guarded: dict[str, Any] = {"auth": "required", "auth_issuer": ISSUER, "auth_jwks": jwks}
    guarded["rate_limits"] = False  # a few users make all calls
    for port, identity in ((open_port, {}), (guarded_port, guarded)):
        settings: dict[str, Any] = {"database_url": SecretStr(""), **identity}
        server = GrpcServer(BalanceSettings(bind=f"127.0.0.1:{port}", **settings), ready=_ready)
        server.mount(_add, None)
        await server.start()
        servers.append(server)
    await empty_server.main(empty_port)


if __name__ == "__main__":
    empty_port, open_port, guarded_port = map(int, sys.argv[1:4])
    uvloop.run(main(empty_port, open_port, guarded_port, sys.argv[4]))
