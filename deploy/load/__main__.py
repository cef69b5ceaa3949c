"""`python -m deploy.load`: the load test, on its own stack or on one that runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

from deploy.load import nginx
from deploy.load.run import Size, existing_stack, own_stack, run_load_test, working_directory
from deploy.local.command_line import BasePort, Flag, GatewayLatency, make_app, run_app
from deploy.local.errors import RunnerError
from deploy.local.plan import Plan, latency_range

app = make_app("deploy.load", "Load Tally with k6, and check gateway and books afterwards.")


@app.default
def load_test(
    *,
    rounds: int = 2000,
    users: int = 500,
    vus: int = 10,
    through_nginx: Flag = False,
    replicas: int = 4,
    data_dir: Path | None = None,
    put_back_max: float = 0.2,
    retried_max: float = 0.1,
    shares: int = 1,
    base_port: BasePort = 50050,
    gateway_latency_ms: GatewayLatency = "100-500",
    against: Path | None = None,
) -> int:
    """Exit 0 only if every threshold, the gateway's record and the audit hold; else 1.

    Parameters
    ----------
    rounds
        Rounds of five confirmations of one payment key at once; 0: none.
    users
        Users of the flash sale; 0: none.
    vus
        How many rounds, or users, at a time.
    through_nginx
        Put nginx, with round robin over the replicas, between k6 and the services.
    replicas
        Replicas of each service.
    data_dir
        Where data and logs are kept; by default a directory that is removed if all goes well.
        With --against: that stack's data directory, for the audit.
    put_back_max
        Payment attempts that the sale may compensate, as a share of its orders.
    retried_max
        Calls of the sale that may be sent more than once, as a share of its calls.
    shares
        Shares of the sale's campaign, from 1 to 64.
    against
        Load a running stack instead of an own one: its ready file, or a JSON file like it,
        {"services": {"balance": ["HOST:PORT", ...], "coupon": ..., "order": ..., "payment": ...}}.
    """
    size = Size(rounds, users, vus, put_back_max, retried_max, shares)
    if through_nginx and nginx.find() is None:
        raise RunnerError(nginx.MISSING)
    latency_ms = latency_range(gateway_latency_ms)
    data_dir = data_dir.absolute() if data_dir else None
    with working_directory(data_dir) as directory, contextlib.ExitStack() as exits:
        if against is None:
            plan = Plan(
                data_dir=directory,
                replicas=replicas,
                base_port=base_port,
                gateway_latency_ms=latency_ms,
            )
            target = exits.enter_context(own_stack(plan))
        else:
            target = existing_stack(against, data_dir)
        run_load_test(target, size, directory / "load", through_nginx=through_nginx)
    return 0


if __name__ == "__main__":
    run_app(app)
