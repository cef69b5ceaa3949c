"""gRPC: the server and what runs around its methods, statuses, health, channels and clients."""
