"""Infrastructure of every service. It imports no service and has no business terms.

``rpc`` is the gRPC server and client, ``db`` the database, ``batching`` the lanes through which all
writes go, ``locking`` the locks and marks in Redis. ``service`` runs a service as a process.
"""

import os
from typing import Final

VERSION: Final = "0.1.0"
"""The release, as in pyproject.toml."""

# gRPC's core writes lines of its own format to stderr. What matters in them arrives as statuses and
# exceptions. gRPC reads the variable when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
