"""The command lines of the local programs: plain help, and each error as one line."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import cyclopts

from deploy.local.errors import RunnerError
from deploy.local.stop_signals import (
    EXIT_STOPPED,
    Stopped,
    ignore_stop_signals,
    raise_on_stop_signals,
)

BasePort = Annotated[
    int,
    cyclopts.Parameter(
        help="P: balance listens on P+1, coupon P+2, order P+3, payment P+4, further replicas 100 "
        "above; gateway P+5, PostgreSQL P+6, Valkey P+7, Prometheus P+8, Alertmanager P+9."
    ),
]
MetricsPort = Annotated[
    int | None,
    cyclopts.Parameter(
        env_var="TALLY_METRICS_PORT",
        help="M: the metrics page of balance listens on M+1, those of coupon, order and payment "
        "on M+2 to M+4, those of further replicas 100 above, that of the audit on M+5. By default "
        "10 above the base port.",
    ),
]
GatewayLatency = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="How long the gateway simulator takes to answer, as LOW-HIGH in milliseconds.",
    ),
]
Flag = Annotated[bool, cyclopts.Parameter(negative="")]


def report(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def make_app(module: str, help_text: str) -> cyclopts.App:
    """The command line of ``python -m module``."""
    return cyclopts.App(
        name=f"python -m {module}",
        help=help_text,
        help_formatter="plain",
        help_format="plaintext",
        version_flags=(),
        print_error=False,
        exit_on_error=False,
    )


def run_app(app: cyclopts.App, *, failure_code: int = 1) -> None:
    """Run the command and exit with what it returns, or with ``failure_code`` after an error."""
    raise_on_stop_signals()
    try:
        app()
    except Stopped:
        report("stopped")
        sys.exit(EXIT_STOPPED)
    except (RunnerError, cyclopts.CycloptsError, OSError, subprocess.SubprocessError) as error:
        ignore_stop_signals()
        sys.stderr.write(f"error: {str(error).strip()}\n")
        sys.exit(failure_code)
