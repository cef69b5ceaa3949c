"""The demo from start to end: a stack, the sale, its checks, the audit, and nothing left."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Final

import structlog

from deploy.local.demo import report
from deploy.local.demo.checks import Check, checks
from deploy.local.demo.fresh import fresh
from deploy.local.demo.sale import hold_sale
from deploy.local.demo.screen import Screen
from deploy.local.demo.script import ORDER_EXPIRY_S, script
from deploy.local.demo.stopping import ignore_signals, run_stoppable
from deploy.local.demo.trouble import Watch
from deploy.local.plan import DEFAULT_DATA_DIR, PROJECT, Plan, plain_environment
from deploy.local.processes import POLL_S, Child
from deploy.local.stack import Stack
from deploy.local.tour import grpcurl_lines

AUDIT_LIMIT_S: Final = 60.0
WRONG_SHOWN: Final = 5


def run(plan: Plan, *, users: int, seed: int, screen: Screen) -> int:
    """Run the demo; return its exit code. Raises RunnerError, and Stopped on a stop signal.

    Enter it in the main thread (see Child). Whatever happens, no process is left.
    """
    began = time.monotonic()
    _set_environment()
    stack = Stack(plan, screen.say)
    fresh(plan.data_dir, screen.say, before=stack.require_free_ports)
    screen.heading(
        f"Tally: a flash sale for {users} customers on {plan.replicas} replicas of each service "
        f"(seed {seed})"
    )
    try:
        stack.start()
        good = _demonstrate(stack, users=users, seed=seed, screen=screen)
    finally:
        ignore_signals()
        try:
            screen.say("stopping")
        finally:
            # Also when nobody reads any more what is said.
            stack.stop()
    _farewell(plan, screen, good=good, took_s=time.monotonic() - began)
    return 0 if good else 1


def _set_environment() -> None:
    """The demo has servers of its own, and orders expire while it looks on."""
    own = plain_environment()
    own.pop("TALLY_PAYMENT_GATEWAY_URL", None)
    own["TALLY_ORDER_ORDER_EXPIRY_S"] = str(ORDER_EXPIRY_S)
    os.environ.clear()
    os.environ.update(own)
    # Repeated calls are what the demo is about: they are counted, not logged.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def _demonstrate(stack: Stack, *, users: int, seed: int, screen: Screen) -> bool:
    plan = stack.plan
    sale = script(users, seed)
    watch = Watch(stack, screen.warn)
    services = {name: plan.addresses(name) for name in plan.services}
    screen.heading("The sale")
    with screen.drawing():
        course = run_stoppable(watch.over(hold_sale(sale, services, watch, screen)))
    screen.table("What happened", report.rows(sale, course))
    as_expected = _show(checks(sale, course.happened, course.found), screen)
    return _audit(plan, watch, screen) and as_expected


def _show(done: Sequence[Check], screen: Screen) -> bool:
    screen.heading("What has to be true")
    for check in done:
        if check.holds:
            screen.good(f"  ok  {check.what}")
            continue
        screen.bad(f"  NOT TRUE: {check.what}")
        for wrong in check.wrong[:WRONG_SHOWN]:
            screen.bad(f"      {wrong}")
        if len(check.wrong) > WRONG_SHOWN:
            screen.bad(f"      and {len(check.wrong) - WRONG_SHOWN} more")
    return all(check.holds for check in done)


def _audit(plan: Plan, watch: Watch, screen: Screen) -> bool:
    """Audit the running stack, as `make audit` does, and show what it says."""
    screen.heading("The audit")
    audit = Child(
        "audit",
        [sys.executable, "-m", "deploy.audit", "--data-dir", plan.data_dir],
        log_file=plan.data_dir / "logs" / "audit.log",
        env=plain_environment(),
        cwd=PROJECT,
    )
    deadline = time.monotonic() + AUDIT_LIMIT_S
    try:
        while audit.exit_code() is None and time.monotonic() < deadline:
            watch.look()
            time.sleep(POLL_S)
    finally:
        code = audit.exit_code()
        audit.stop()
        for line in audit.log_text().rstrip().splitlines():
            screen.say(f"  {line}")
    if code is None:
        screen.bad(f"the audit did not end within {AUDIT_LIMIT_S:.0f} s")
    return code == 0


def _farewell(plan: Plan, screen: Screen, *, good: bool, took_s: float) -> None:
    if not good:
        screen.bad(f"\nThe demo failed after {took_s:.0f} s; logs are in {plan.data_dir / 'logs'}.")
        return
    screen.good(f"\nThe books balance. {took_s:.0f} s in all; nothing is left running.")
    where = "" if plan.data_dir == DEFAULT_DATA_DIR else f" DATA_DIR={plan.data_dir}"
    screen.say(f"To go on with this data: make up{where}  (the next demo replaces it)")
    # `make up` takes the default ports.
    charge = grpcurl_lines({"balance": Plan().addresses("balance")})[1]
    screen.say(f"Then, for instance:      {charge}")
    screen.say("README.md has the rest of the tour.")
