"""`python -m deploy.local up`: everything on one machine, in the foreground."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

from deploy.local.errors import RunnerError
from deploy.local.plan import DEFAULT_DATA_DIR, Plan, latency_range
from deploy.local.stack import Stack
from deploy.local.tour import grpcurl_lines

if TYPE_CHECKING:
    from types import FrameType

WATCH_INTERVAL_S = 0.2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

app = cyclopts.App(
    name="python -m deploy.local",
    help="Run Tally on this machine.",
    help_formatter="plain",
    help_format="plaintext",
    version_flags=(),
    print_error=False,
    exit_on_error=False,
)


class Stopped(BaseException):
    """The user asked to stop. Not an Exception: nothing on the way may take it for a failure."""


@app.command
def up(
    *,
    replicas: int = 2,
    data_dir: Path = DEFAULT_DATA_DIR,
    ready_file: Path | None = None,
    base_port: int = 50050,
    gateway_latency_ms: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)] = "100-500",
    without_redis: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Start PostgreSQL, Valkey, the gateway simulator and all services; stop them on Ctrl-C.

    Servers named in the environment are used instead of own ones: TALLY_<SERVICE>_DATABASE_URL
    with _OWNER_ and _AUDIT_DATABASE_URL, TALLY_REDIS_URL, TALLY_PAYMENT_GATEWAY_URL.

    Parameters
    ----------
    replicas
        Replicas of each service.
    data_dir
        Where data and logs are kept; the same directory again continues with the same data.
    ready_file
        Written as JSON once every replica is ready, removed at the end.
    base_port
        P: balance listens on P+1, coupon P+2, order P+3, payment P+4, further replicas 100
        above; gateway P+5, PostgreSQL P+6, Valkey P+7.
    gateway_latency_ms
        How long the gateway simulator takes to answer, as LOW-HIGH.
    without_redis
        Run without the first line of locks.
    """
    plan = Plan(
        data_dir=data_dir.absolute(),
        replicas=replicas,
        base_port=base_port,
        gateway_latency_ms=latency_range(gateway_latency_ms),
        redis=not without_redis,
        ready_file=ready_file.absolute() if ready_file else None,
    )
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    stack = Stack(plan, _say)
    try:
        stack.start()
        _introduce(stack)
        while True:
            for line in stack.newly_dead():
                _say(line)
            time.sleep(WATCH_INTERVAL_S)
    except Stopped:
        _say("stopping")
    finally:
        _ignore_stop_signals()
        stack.stop()
    _say("stopped")
    return 0


def _introduce(stack: Stack) -> None:
    services = stack.description()["services"]
    _say("ready. Logs are in " + str(stack.plan.data_dir / "logs") + ". To try it:")
    _say("\n".join(["", *grpcurl_lines(services), ""]))
    _say("Ctrl-C stops everything.")


def _say(text: str) -> None:
    print(text, flush=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    _ignore_stop_signals()
    raise Stopped


def _ignore_stop_signals() -> None:
    """Let nothing cut the clean stop short: not a second Ctrl-C, and not both signals at once.

    A handler that does nothing, and not SIG_IGN: Python complains on stderr about a signal that
    arrived just before it was set to be ignored.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _go_on)


def _go_on(_number: int, _frame: FrameType | None) -> None:
    pass


def main() -> None:
    try:
        sys.exit(app(sys.argv[1:]))
    except (RunnerError, cyclopts.CycloptsError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {str(error).strip()}")


if __name__ == "__main__":
    main()
