"""gRPC: server, handlers, statuses, health, channels and clients."""
