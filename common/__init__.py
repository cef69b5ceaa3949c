"""Infrastructure that every service stands on; it knows no business noun."""

import os

# gRPC's core writes its own lines to stderr, between ours and in another form; what matters of them
# reaches us as statuses and exceptions. It reads this when it is first imported, hence here.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
