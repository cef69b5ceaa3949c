"""A load test from start to end: a stack, nginx if wanted, the scripts, and the checks."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.load import k6, nginx
from deploy.load.server_checks import Finding, books_balance, charged_once, memory_within_limit
from deploy.local.command_line import report
from deploy.local.errors import RunnerError
from deploy.local.plan import GATEWAY_RECORD, SERVICES, Plan, use_own_servers
from deploy.local.secret_files import read_json
from deploy.local.stack import Stack, describe_death
from deploy.local.stop_signals import ignore_stop_signals


class LoadFailed(RunnerError):  # noqa: N818 - a fact about the services
    """A threshold or a check does not hold; the message names the logs."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the load. Raises RunnerError for numbers out of range."""

    rounds: int
    """Of five confirmations each; 0 leaves the script out."""
    users: int
    """Of the flash sale; 0 leaves the script out."""
    vus: int
    """k6's virtual users: rounds, or users of the sale, at a time."""
    put_back_max: float = 0.2
    """Payment attempts that may be compensated, as a share of the sale's orders."""
    retried_max: float = 0.1
    """Calls that may be sent more than once, as a share of the sale's calls."""
    shares: int = 1
    """Of the sale's campaign."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.users) < 0 or self.rounds + self.users == 0:
            raise RunnerError("rounds and users must be 0 or more, and not both 0")
        if not 1 <= self.vus <= 1000:
            raise RunnerError(f"vus must be from 1 to 1000, not {self.vus}")
        if not (self.put_back_max >= 0 and self.retried_max >= 0):
            raise RunnerError("put-back-max and retried-max must be 0 or more")
        if not 1 <= self.shares <= 64:
            raise RunnerError(f"shares must be from 1 to 64, not {self.shares}")


@dataclass
class Target:
    """The stack under load."""

    services: Mapping[str, Sequence[str]]
    data_dir: Path | None
    """None if it is elsewhere: gateway record and books cannot be checked."""
    names: Sequence[str] = ()
    """The payment replicas' names, if known: nginx must spread calls evenly over them."""
    stack: Stack | None = None
    """None if it was not started here: its processes are not watched."""


@contextlib.contextmanager
def own_stack(plan: Plan) -> Iterator[Target]:
    """A stack on this machine, with its own servers, during the block."""
    use_own_servers()
    stack = Stack(plan, report)
    try:
        stack.start()
        yield Target(
            {service: plan.addresses(service) for service in SERVICES},
            plan.data_dir,
            [f"payment-{number}" for number in range(plan.replicas)],
            stack,
        )
    finally:
        ignore_stop_signals()
        stack.stop()


def existing_stack(description: Path, data_dir: Path | None) -> Target:
    """A running stack, by its ready file or one like it: ``{"services": {...}}``."""
    found = (read_json(description) or {}).get("services", {})
    missing = [service for service in SERVICES if not found.get(service)]
    if missing:
        raise RunnerError(f"{description}: it names no address of {', '.join(missing)}")
    return Target({service: found[service] for service in SERVICES}, data_dir)


@contextlib.contextmanager
def working_directory(data_dir: Path | None) -> Iterator[Path]:
    """The given directory, or a temporary one, which is kept only if LoadFailed is raised."""
    if data_dir is not None:
        yield data_dir
        return
    directory = Path(tempfile.mkdtemp(prefix="tally-load-"))
    with contextlib.ExitStack() as exits:
        exits.callback(shutil.rmtree, directory, ignore_errors=True)
        try:
            yield directory
        except LoadFailed:
            exits.pop_all()
            raise


def run_load_test(target: Target, size: Size, directory: Path, *, through_nginx: bool) -> None:
    """Run the scripts against the target, run all checks, and print the result.

    Call it in the main thread (see Child). Logs are written to ``directory``. Raises LoadFailed if
    something does not hold, and RunnerError if nginx is missing.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = uuid.uuid4().hex[:12]
    findings: list[Finding] = []
    with contextlib.ExitStack() as exits:
        services = target.services
        if through_nginx:
            services = exits.enter_context(
                nginx.round_robin(services, directory / "nginx", directory / "nginx.log")
            )
            report(f"nginx       {', '.join(places[0] for places in services.values())}")
        variables = {name.upper(): ",".join(places) for name, places in services.items()} | {
            "RUN": run,
            "ROUNDS": str(size.rounds),
            "USERS": str(size.users),
            "VUS": str(size.vus),
            "PUT_BACK_MAX": str(size.put_back_max),
            "RETRIED_MAX": str(size.retried_max),
            "SHARES": str(size.shares),
        }
        if through_nginx:
            # Without nginx, k6 itself calls the replicas in turn.
            variables["REPLICAS"] = ",".join(target.names)
        for script, wanted, load in (
            ("confirm_once", size.rounds, "rounds of 5 confirmations at once"),
            ("flash_sale", size.users, "users"),
        ):
            if wanted:
                report(f"\nk6 {script}: {wanted:,} {load}, {size.vus} at a time")
                outcome = k6.run_script(script, variables, directory)
                findings += _script_findings(script, outcome)
                findings += _gateway_findings(target, script, run, wanted, outcome)
    findings += _stack_findings(target)
    report("\nResult")
    for finding in findings:
        mark = "skipped" if finding.skipped else "ok" if finding.holds else "FAILED"
        report(f"  {mark:<7} {finding.what}: {finding.figure}")
    if not all(finding.holds for finding in findings):
        raise LoadFailed(f"the load test failed; logs are in {directory}")


def _script_findings(script: str, outcome: k6.Outcome) -> Iterator[Finding]:
    yield Finding(f"{script}: every threshold", outcome.ending, outcome.exit_code == 0)
    count, times = outcome.count, outcome.times
    if script == "confirm_once":
        measured = (
            f"{count('confirmations_paid'):,} paid, "
            f"{count('refused_payment_in_progress'):,} refused as in progress, "
            f"{count('refused_payment_key_used'):,} as used, "
            f"rivals met in {outcome.share('rounds_with_a_rival_in_progress'):.1%} of rounds; "
            f"paid in {times('confirmation_paid_duration')}, "
            f"refused in {times('confirmation_refused_duration')}"
        )
    else:
        measured = (
            f"{count('coupons_issued'):,} coupons, {count('orders_paid'):,} orders paid, "
            f"{count('attempts_put_back'):,} attempts compensated and made again, "
            f"{count('retried_calls'):,} calls repeated; "
            f"issue {times('issue_coupon_duration')}, order {times('create_order_duration')}, "
            f"pay {times('pay_order_duration')}"
        )
    yield Finding(f"{script}: measured", measured, holds=True)


def _gateway_findings(
    target: Target, script: str, run: str, wanted: int, outcome: k6.Outcome
) -> Iterator[Finding]:
    if target.data_dir is None:
        return
    record = target.data_dir / GATEWAY_RECORD
    if script == "confirm_once":
        yield charged_once(record, f"once_{run}_", wanted)
    else:
        paid = outcome.count("orders_paid")
        yield charged_once(record, f"sale_{run}_", paid, refunds_allowed=True)


def _stack_findings(target: Target) -> Iterator[Finding]:
    if target.stack is not None:
        if dead := target.stack.newly_dead():
            yield Finding("every process lives", "; ".join(map(describe_death, dead)), holds=False)
        else:
            yield memory_within_limit(child.pid for child in target.stack.replicas.values())
    if target.data_dir is not None:
        yield books_balance(target.data_dir)
    else:
        figure = "not checked, since no --data-dir was given"
        yield Finding("the gateway's record and the audit", figure, holds=True, skipped=True)
