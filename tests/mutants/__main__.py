"""Plants every bug in a copy of the project and runs the tests that have to catch it.

First all chosen tests must pass without a bug: a test that always fails catches nothing. Prints one
line per bug, then the table; exits with 1 if a bug survives or a patch does not fit.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, copy_project, planted

AT_ONCE: Final = 2
"""Copies, and bugs that are tried at the same time."""
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
TESTS_FAILED: Final = 1
"""pytest's exit status. Others, such as an import that fails, mean that no test has run."""


@dataclass(frozen=True)
class Run:
    """One run of pytest."""

    status: int
    output: str
    seconds: float

    @property
    def failed(self) -> list[str]:
        """The ids of the tests that failed, without parameters."""
        return list(dict.fromkeys(_FAILED.findall(self.output)))


@dataclass(frozen=True)
class Verdict:
    """What became of a planted bug."""

    mutant: Mutant
    caught_by: str
    """A test's id; empty if the bug survived."""
    seconds: float
    problem: str = ""


async def run_tests(copy: Path, tests: Iterable[str], *options: str) -> Run:
    """Run tests of the copy, with its own packages."""
    path = f"{copy}{os.pathsep}{copy / 'protos' / 'gen'}"
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-rfE", *options, *tests),
        cwd=copy,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    seconds = time.monotonic() - begun
    return Run(process.returncode or 0, output.decode(errors="replace"), seconds)


async def failing_without_a_bug(tests: Sequence[str], copies: Sequence[Path]) -> set[str]:
    """The tests that fail on an unpatched copy, also when they are run a second time."""
    failing = set(tests)
    for processes in (len(copies), 1):
        run = await run_tests(
            copies[0], sorted(failing), f"--numprocesses={processes}", "--dist=loadfile"
        )
        if run.status not in (0, TESTS_FAILED):
            print(run.output[-5_000:])
            return failing
        failing = {test for test in failing if any(_is_of(failed, test) for failed in run.failed)}
        if not failing:
            return failing
    print(run.output[-5_000:])
    return failing


def _is_of(failed: str, test: str) -> bool:
    """Whether a test that failed, without parameters, is the named one or in the named class."""
    name = test.partition("[")[0]
    return failed == name or failed.startswith(f"{name}::")


async def judge(mutant: Mutant, copy: Path) -> Verdict:
    """Plant the bug and run its tests until one fails."""
    try:
        with planted(mutant, copy):
            run = await run_tests(copy, mutant.tests, "-x")
    except ValueError as error:
        return Verdict(mutant, "", 0.0, str(error))
    if run.status == TESTS_FAILED and run.failed:
        return Verdict(mutant, run.failed[0], run.seconds)
    problem = "no test failed" if run.status == 0 else f"pytest ended with {run.status}"
    return Verdict(mutant, "", run.seconds, f"{problem}\n{run.output[-1_500:]}")


async def judge_all(
    mutants: Sequence[Mutant], copies: Sequence[Path], failing: set[str]
) -> list[Verdict]:
    """One bug at a time in each copy. ``failing``: tests that prove nothing."""
    waiting = list(reversed(mutants))
    verdicts: dict[str, Verdict] = {}

    async def work(copy: Path) -> None:
        while waiting:
            mutant = waiting.pop()
            if failing.isdisjoint(mutant.tests):
                verdict = await judge(mutant, copy)
            else:
                verdict = Verdict(mutant, "", 0.0, "its tests fail without it")
            verdicts[mutant.name] = verdict
            result = verdict.caught_by or f"NOT CAUGHT: {verdict.problem}"
            print(f"{len(verdicts):3}/{len(mutants)}  {mutant.name}: {result}", flush=True)

    await asyncio.gather(*map(work, copies))
    return [verdicts[mutant.name] for mutant in mutants]


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts in Markdown."""
    rows = ["| bug | what is wrong | file | caught by | s |", "|---|---|---|---|---:|"]
    for verdict in verdicts:
        mutant = verdict.mutant
        # A state machine's only test is runTest: its class has the name.
        test = verdict.caught_by.removesuffix("::runTest").rpartition("::")[2]
        caught = f"`{test}`" if test else "nothing"
        rows.append(
            f"| {mutant.name} | {mutant.bug} | `{mutant.file}` | {caught} | {verdict.seconds:.0f} |"
        )
    return "\n".join(rows)


async def main(names: Sequence[str]) -> int:
    mutants = [one for one in MUTANTS if not names or one.name in names]
    if unknown := set(names) - {one.name for one in mutants}:
        print(f"no such bug: {', '.join(sorted(unknown))}")
        return 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tally-mutants-") as folder:
        copies = [Path(folder, str(number)) for number in range(min(AT_ONCE, len(mutants)))]
        for copy in copies:
            copy_project(copy)
        tests = sorted({test for one in mutants for test in one.tests})
        print(f"{len(tests)} tests without a bug ...", flush=True)
        failing = await failing_without_a_bug(tests, copies)
        verdicts = await judge_all(mutants, copies, failing)
    caught = sum(bool(verdict.caught_by) for verdict in verdicts)
    print(f"\n{table(verdicts)}\n")
    print(f"{caught} of {len(verdicts)} bugs caught in {time.monotonic() - begun:.0f} s")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make test-mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="bugs to plant; default: all")
    sys.exit(asyncio.run(main(parser.parse_args().names)))
