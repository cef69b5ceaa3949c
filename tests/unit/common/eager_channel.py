"""What no module may do: a channel made by an import, outside any loop."""

import grpc

CHANNEL = grpc.aio.insecure_channel("127.0.0.1:1")
