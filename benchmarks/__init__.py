"""Benchmarks and their reports: ratios within one run, never absolute times."""

import os

# A run starts programs while gRPC's threads are at work, which gRPC would otherwise report each
# time. It reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
