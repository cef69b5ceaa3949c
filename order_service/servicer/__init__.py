"""The order service over gRPC: proto → command → use case → proto."""
