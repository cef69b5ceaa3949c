"""A load test from start to end: a stack, perhaps nginx, the scripts, and what must hold then."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.audit.sources import GATEWAY_RECORD
from deploy.load import k6, nginx
from deploy.load.books import Finding, books_balance, charged_once, memory_kept
from deploy.local.demo.stopping import ignore_signals
from deploy.local.errors import RunnerError
from deploy.local.plan import Plan, plain_environment
from deploy.local.secret_files import read_json
from deploy.local.stack import Stack

SERVICES: Final = ("balance", "coupon", "order", "payment")
Say = Callable[[str], None]


class LoadFailed(RunnerError):  # noqa: N818 - a fact about the services
    """Something is not as it must be; the message says where to look."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much load. Raises RunnerError for numbers that are no load."""

    rounds: int
    """Of five confirmations each; 0: none, the script is left out."""
    users: int
    """Of the flash sale; 0: none, the script is left out."""
    vus: int
    """k6's virtual users: rounds, or users of the sale, at a time."""
    put_back_max: float = 0.2
    """Attempts to pay that the sale's orders may have put back, as a share of its orders."""
    retried_max: float = 0.1
    """Calls of the sale that may be sent more than once, as a share of them."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.users) < 0 or self.rounds + self.users == 0:
            raise RunnerError("rounds and users must be 0 or more, and not both 0")
        if not 1 <= self.vus <= 1000:
            raise RunnerError(f"vus must be from 1 to 1000, not {self.vus}")
        if not (self.put_back_max >= 0 and self.retried_max >= 0):
            raise RunnerError("put-back-max and retried-max must be 0 or more")


@dataclass
class Target:
    """What the load meets, and how to look behind it."""

    services: Mapping[str, Sequence[str]]
    data_dir: Path | None
    """Of the stack; None if it is somewhere else and its books cannot be seen."""
    names: Sequence[str] = ()
    """The payment replicas' names, if known: a balancer must spread calls evenly over them."""
    pids: Sequence[int] = ()
    newly_dead: Callable[[], Sequence[str]] = lambda: ()
    dead: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Note the processes that have ended and should not."""
        self.dead += self.newly_dead()


@contextlib.contextmanager
def own_stack(plan: Plan, say: Say) -> Iterator[Target]:
    """A stack on this machine for as long as the test lasts, with servers of its own."""
    own = plain_environment()
    # A load is no thing to send to a gateway that somebody has in use.
    own.pop("TALLY_PAYMENT_GATEWAY_URL", None)
    os.environ.clear()
    os.environ.update(own)
    stack = Stack(plan, say)
    try:
        stack.start()
        yield Target(
            {service: plan.addresses(service) for service in SERVICES},
            plan.data_dir,
            [f"payment-{number}" for number in range(plan.replicas)],
            [child.pid for child in stack.replicas.values()],
            stack.newly_dead,
        )
    finally:
        ignore_signals()
        stack.stop()


def existing_stack(description: Path, data_dir: Path | None) -> Target:
    """A stack that runs already, by its ready file or one like it: ``{"services": {...}}``."""
    found = (read_json(description) or {}).get("services", {})
    missing = [service for service in SERVICES if not found.get(service)]
    if missing:
        raise RunnerError(f"{description}: it names no address of {', '.join(missing)}")
    return Target({service: found[service] for service in SERVICES}, data_dir)


@contextlib.contextmanager
def working_directory(data_dir: Path | None) -> Iterator[Path]:
    """The given directory; else a temporary one, which is kept only if LoadFailed is raised."""
    if data_dir is not None:
        yield data_dir
        return
    made = Path(tempfile.mkdtemp(prefix="tally-load-"))
    try:
        yield made
    except LoadFailed:
        raise
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    shutil.rmtree(made, ignore_errors=True)


def load(target: Target, size: Size, directory: Path, say: Say, *, through_nginx: bool) -> None:
    """Run the scripts against the target, look behind them, and say all that was found.

    Call it in the main thread (see Child). Logs are left in ``directory``. Raises LoadFailed if
    something is not as it must be, and RunnerError if there is no nginx to go through.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = uuid.uuid4().hex[:12]
    with contextlib.ExitStack() as exits:
        services = target.services
        if through_nginx:
            services = exits.enter_context(
                nginx.round_robin(services, directory / "nginx", directory / "nginx.log")
            )
            say(f"nginx       {', '.join(places[0] for places in services.values())}")
        variables = k6.addresses(services) | {
            "RUN": run,
            "ROUNDS": str(size.rounds),
            "USERS": str(size.users),
            "VUS": str(size.vus),
            "PUT_BACK_MAX": str(size.put_back_max),
            "RETRIED_MAX": str(size.retried_max),
        }
        if through_nginx:
            # Without it k6 itself takes replicas in turn, and would count its own turns.
            variables["REPLICAS"] = ",".join(target.names)
        findings: list[Finding] = []
        for script, wanted in (("confirm_once", size.rounds), ("flash_sale", size.users)):
            if wanted:
                say(f"\nk6 {script}: {_what(script, size)}")
                outcome = k6.run_script(
                    script, variables, directory, meanwhile=target.look, say=say
                )
                findings += _of_script(script, outcome)
                findings += _of_record(target, script, run, wanted, outcome)
    findings += _behind(target)
    _show(findings, say)
    if not all(finding.holds for finding in findings):
        raise LoadFailed(f"the load test failed; logs are in {directory}")


def _what(script: str, size: Size) -> str:
    if script == "confirm_once":
        return f"{size.rounds:,} rounds of 5 confirmations at once, {size.vus} rounds at a time"
    return f"{size.users:,} users, {size.vus} at a time"


def _of_script(script: str, outcome: k6.Outcome) -> Iterator[Finding]:
    yield Finding(f"{script}: every threshold", outcome.ending, outcome.exit_code == 0)
    count, times = outcome.count, outcome.times
    if script == "confirm_once":
        told = (
            f"{count('confirmations_paid'):,} paid, "
            f"{count('refused_payment_in_progress'):,} refused as in progress, "
            f"{count('refused_payment_key_used'):,} as used, "
            f"rivals met in {outcome.share('rounds_with_a_rival_in_progress'):.1%} of rounds; "
            f"paid in {times('confirmation_paid_duration')}, "
            f"refused in {times('confirmation_refused_duration')}"
        )
    else:
        told = (
            f"{count('coupons_issued'):,} coupons, {count('orders_paid'):,} orders paid, "
            f"{count('attempts_put_back'):,} attempts put back and made anew, "
            f"{count('retried_calls'):,} calls repeated; "
            f"issue {times('issue_coupon_duration')}, order {times('create_order_duration')}, "
            f"pay {times('pay_order_duration')}"
        )
    yield Finding(f"{script}: measured", told, holds=True)


def _of_record(
    target: Target, script: str, run: str, wanted: int, outcome: k6.Outcome
) -> Iterator[Finding]:
    if target.data_dir is None:
        return
    record = target.data_dir / GATEWAY_RECORD
    if script == "confirm_once":
        yield charged_once(record, f"once_{run}_", wanted)
    else:
        paid = outcome.count("orders_paid")
        yield charged_once(record, f"sale_{run}_", paid, may_be_put_back=True)


def _behind(target: Target) -> Iterator[Finding]:
    target.look()
    if target.dead:
        yield Finding("every process lives", "; ".join(target.dead), holds=False)
    elif target.pids:
        yield memory_kept(target.pids)
    if target.data_dir is not None:
        yield books_balance(target.data_dir)
    else:
        told = "not looked at, for no --data-dir was given"
        yield Finding("the gateway's record and the audit", told, holds=True, looked=False)


def _show(findings: Sequence[Finding], say: Say) -> None:
    say("\nResult")
    for finding in findings:
        mark = "skipped" if not finding.looked else "ok" if finding.holds else "FAILED"
        say(f"  {mark:<7} {finding.what}: {finding.figure}")
