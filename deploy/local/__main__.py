"""`python -m deploy.local up`: the whole stack on one machine, in the foreground."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from deploy.local.command_line import (
    BasePort,
    Flag,
    GatewayLatency,
    MetricsPort,
    make_app,
    report,
    run_app,
)
from deploy.local.identities import OPEN, TOKENS_OF, USERS
from deploy.local.plan import DEFAULT_DATA_DIR, Plan, latency_range
from deploy.local.stack import Stack, describe_death
from deploy.local.stop_signals import Stopped, ignore_stop_signals
from deploy.local.tour import grpcurl_lines

WATCH_INTERVAL_S: Final = 0.2

app = make_app("deploy.local", "Run Tally on this machine.")


@app.command
def up(
    *,
    replicas: int = 2,
    data_dir: Path = DEFAULT_DATA_DIR,
    ready_file: Path | None = None,
    base_port: BasePort = 50050,
    metrics_port: MetricsPort = None,
    gateway_latency_ms: GatewayLatency = "100-500",
    without_redis: Flag = False,
    monitoring: Flag = False,
    auth: Flag = False,
) -> int:
    """Start PostgreSQL, Valkey, the gateway simulator and all services; stop them on Ctrl-C.

    Servers named in the environment are used instead of local ones: TALLY_<SERVICE>_DATABASE_URL
    with _OWNER_ and _AUDIT_DATABASE_URL, TALLY_REDIS_URL, TALLY_PAYMENT_GATEWAY_URL.

    Parameters
    ----------
    replicas
        Replicas of each service.
    data_dir
        Where data and logs are kept; the same directory again continues with the same data.
    ready_file
        Written as JSON once every replica is ready, removed at the end.
    without_redis
        Run without Redis locks.
    monitoring
        Start the audit, Prometheus and Alertmanager too, with the rules in deploy/monitoring.
    auth
        Ask for tokens: the stack makes keys, and prints tokens to try.
    """
    plan = Plan(
        data_dir=data_dir.absolute(),
        replicas=replicas,
        base_port=base_port,
        metrics_port=metrics_port,
        monitoring=monitoring,
        gateway_latency_ms=latency_range(gateway_latency_ms),
        redis=not without_redis,
        auth=auth,
        ready_file=ready_file.absolute() if ready_file else None,
    )
    stack = Stack(plan, report)
    try:
        stack.start()
        _introduce(stack)
        while True:
            for child in stack.newly_dead():
                report(describe_death(child))
            time.sleep(WATCH_INTERVAL_S)
    except Stopped:
        report("stopping")
    finally:
        ignore_stop_signals()
        stack.stop()
    report("stopped")
    return 0


def _introduce(stack: Stack) -> None:
    addresses = {service: stack.plan.addresses(service) for service in stack.plan.services}
    data_dir = stack.plan.data_dir
    where = "" if data_dir == DEFAULT_DATA_DIR else f" DATA_DIR={data_dir}"
    report(f"ready. Logs are in {data_dir / 'logs'}.")
    if stack.identities is None:
        report(OPEN)
        report("To try it:")
    else:
        report(f"Calls need a token. Those of {TOKENS_OF} are in a file. To try it:")
        report(f"\n. {stack.identities.write_tokens(*USERS)}")
    report("\n".join(["", *grpcurl_lines(addresses, auth=stack.plan.auth), ""]))
    report(f"In a second terminal, `make watch{where}` shows what it does.")
    report("Ctrl-C stops everything.")


if __name__ == "__main__":
    run_app(app)
