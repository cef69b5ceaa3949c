"""The demo from start to end: a stack, the sale, its checks, the audit, and an orderly stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import structlog

from deploy.local.demo import report
from deploy.local.demo.callers import Callers
from deploy.local.demo.checks import Check, run_checks
from deploy.local.demo.fresh_data_dir import prepare_data_dir
from deploy.local.demo.output import BAD, GOOD, WARNING, Output
from deploy.local.demo.sale import hold_sale
from deploy.local.demo.scenario import ORDER_EXPIRY_S, make_scenario
from deploy.local.demo.watchdog import Watchdog
from deploy.local.identities import CLOSED, OPEN
from deploy.local.plan import DEFAULT_DATA_DIR, Plan, use_own_servers
from deploy.local.stack import Stack
from deploy.local.state import run_audit
from deploy.local.stop_signals import ignore_stop_signals, run_stoppable
from deploy.local.tour import grpcurl_lines

WRONG_LISTED_MAX: Final = 5


def run(plan: Plan, *, users: int, seed: int, output: Output) -> int:
    """Run the demo; its exit code. Raises RunnerError, and Stopped after a stop signal.

    Call it in the main thread (see Child). Whatever happens, no process is left.
    """
    began = time.monotonic()
    # Orders expire while the demo runs.
    use_own_servers(TALLY_ORDER_ORDER_EXPIRY_S=str(ORDER_EXPIRY_S))
    # Repeated calls are counted, not logged.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    stack = Stack(plan, output.print)
    prepare_data_dir(plan.data_dir, output.print, before=stack.require_free_ports)
    output.heading(
        f"Tally: a flash sale for {users} customers on {plan.replicas} replicas of each service "
        f"(seed {seed})"
    )
    try:
        stack.start()
        output.print(OPEN if stack.identities is None else CLOSED)
        good = _demonstrate(stack, users=users, seed=seed, output=output)
    finally:
        ignore_stop_signals()
        try:
            output.print("stopping")
        finally:
            # Also if the output is a closed pipe.
            stack.stop()
    _print_summary(plan, output, good=good, took_s=time.monotonic() - began)
    return 0 if good else 1


def _demonstrate(stack: Stack, *, users: int, seed: int, output: Output) -> bool:
    plan = stack.plan
    scenario = make_scenario(users, seed)
    watchdog = Watchdog(stack, lambda text: output.print(text, WARNING))
    services = {name: plan.addresses(name) for name in plan.services}
    output.heading("The sale")
    with output.drawing():
        callers = Callers(stack.identities)
        outcome = run_stoppable(
            watchdog.run(hold_sale(scenario, services, callers, watchdog, output))
        )
    killed = watchdog.victim.name if watchdog.victim else "none"
    output.table("What happened", report.rows(scenario, outcome, killed))
    checks = run_checks(scenario, outcome.results, outcome.state)
    as_expected = _show([*checks, outcome.concert], output)
    balanced = _audit(plan, output)
    watchdog.check()
    return balanced and as_expected


def _show(checks: Sequence[Check], output: Output) -> bool:
    output.heading("What must be true")
    for check in checks:
        if check.holds:
            output.print(f"  ok  {check.what}", GOOD)
            continue
        output.print(f"  NOT TRUE: {check.what}", BAD)
        for wrong in check.wrong[:WRONG_LISTED_MAX]:
            output.print(f"      {wrong}", BAD)
        if len(check.wrong) > WRONG_LISTED_MAX:
            output.print(f"      and {len(check.wrong) - WRONG_LISTED_MAX} more", BAD)
    return all(check.holds for check in checks)


def _audit(plan: Plan, output: Output) -> bool:
    output.heading("The audit")
    code, lines = run_audit(plan.data_dir)
    for line in lines:
        output.print(f"  {line}")
    return code == 0


def _print_summary(plan: Plan, output: Output, *, good: bool, took_s: float) -> None:
    if not good:
        output.print(
            f"\nThe demo failed after {took_s:.0f} s; logs are in {plan.data_dir / 'logs'}.", BAD
        )
        return
    output.print(f"\nThe books balance. {took_s:.0f} s in all; no process is left running.", GOOD)
    where = "" if plan.data_dir == DEFAULT_DATA_DIR else f" DATA_DIR={plan.data_dir}"
    where += " AUTH=1" if plan.auth else ""
    output.print(f"To continue with this data: make up{where}  (the next demo replaces it)")
    # `make up` uses the default ports.
    charge = grpcurl_lines({"balance": Plan().addresses("balance")}, auth=plan.auth)[1]
    output.print(f"Then, for instance:         {charge}")
    output.print("README.md has the rest of the tour.")
