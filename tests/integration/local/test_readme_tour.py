"""The tour of the README: its commands are run, and their output is compared with the README."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from deploy.local.identities import USERS
from deploy.local.plan import DEFAULT_DATA_DIR, PROJECT, Plan
from deploy.local.stack import Stack
from tests.integration.local.test_runner import free_base_port

HEADING: Final = "## A tour with grpcurl\n"
WITH_TOKENS: Final = "## Calls with tokens\n"
BASE_PORT: Final = 50050
COMMAND_LIMIT_S: Final = 40
_BLOCK: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KEPT: Final = re.compile(r"alias |\. |\w+='")
_ADDRESS: Final = re.compile(r"\blocalhost:(5\d{4})\b")
_ID: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_TIME: Final = re.compile(r'(?<=_time": ")\d{4}-\d\d-\d\dT[\d:.]+Z')


@dataclass(frozen=True)
class Step:
    """A command, of one or more lines, and the output that the README shows."""

    command: str
    output: str


def tour(heading: str) -> list[Step]:
    """The commands in a section of the README, in order."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = text.split(heading)[1].split("\n## ", maxsplit=1)[0]
    steps = []
    for block in _BLOCK.findall(section):
        assert block.startswith("$ "), "a block begins with a command"
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            size = command_lines(lines)
            steps.append(Step("".join(lines[:size]), "".join(lines[size:])))
    return steps


def command_lines(lines: list[str]) -> int:
    """The number of its lines: it ends when no quote is open and no backslash is at the end."""
    quoted = False
    for number, line in enumerate(lines, 1):
        quoted ^= line.count("'") % 2 == 1
        if not quoted and not line.endswith("\\\n"):
            return number
    raise AssertionError("the command does not end: " + "".join(lines))


@dataclass
class Reader:
    """Runs the commands in a shell, for a stack on other ports."""

    base_port: int
    data_dir: Path = DEFAULT_DATA_DIR
    aliases: str = ""
    """What the shell of the reader keeps from one command to the next."""
    ids: dict[str, str] = field(default_factory=dict)
    """For each id in the README, the id that this stack returned."""

    def follow(self, step: Step) -> None:
        """Run the command and compare. Ids and times may differ, but ids only consistently."""
        if _KEPT.match(step.command):
            self.aliases += step.command
            assert step.output == ""
            return
        output = self.run(step.command)
        assert normal(output) == normal(step.output), step.command
        for shown, actual in zip(_ID.findall(step.output), _ID.findall(output), strict=True):
            assert self.ids.setdefault(shown, actual) == actual, f"another id than before: {shown}"
        assert len(set(self.ids.values())) == len(self.ids), "two ids are the same"

    def run(self, command: str) -> str:
        command = _ADDRESS.sub(self.address, self.aliases + command)
        command = command.replace(".tally/data", str(self.data_dir))
        command = _ID.sub(lambda match: self.ids[match[0]], command)
        done = subprocess.run(
            ["bash", "-O", "expand_aliases", "-c", command],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        return done.stdout

    def address(self, match: re.Match[str]) -> str:
        return f"127.0.0.1:{int(match[1]) - BASE_PORT + self.base_port}"


def normal(output: str) -> str:
    return _ID.sub("<id>", _TIME.sub("<time>", output))


@pytest.fixture
def base_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The ports of a stack as `make up` starts it, with a fast gateway and a short time limit."""
    monkeypatch.setenv("TALLY_PAYMENT_GATEWAY_TIMEOUT_S", "1")
    plan = Plan(data_dir=tmp_path / "data", base_port=free_base_port(), gateway_latency_ms=(5, 20))
    with Stack(plan, print):
        yield plan.base_port


def test_calls_with_tokens_print_what_the_readme_shows(tmp_path: Path) -> None:
    plan = Plan(
        data_dir=tmp_path / "data", base_port=free_base_port(), auth=True, services=("balance",)
    )
    steps = tour(WITH_TOKENS)
    assert len(steps) >= 8
    reader = Reader(plan.base_port, plan.data_dir)
    with Stack(plan, print) as stack:
        assert stack.identities is not None
        stack.identities.write_tokens(*USERS)
        for step in steps:
            reader.follow(step)


@pytest.mark.timeout(240)
def test_tour_prints_what_the_readme_shows(base_port: int) -> None:
    steps = tour(HEADING)
    assert len(steps) >= 20
    reader = Reader(base_port)
    for step in steps:
        reader.follow(step)
    assert len(reader.ids) >= 5


def test_other_output_fails() -> None:
    first, actual, second, third = (
        f"01a1fd8e-09ed-7408-a568-93dc6875052{digit}" for digit in "abcd"
    )
    reader = Reader(BASE_PORT, ids={first: actual, second: second})
    reader.follow(Step(f"echo {first}\n", f"{first}\n"))
    with pytest.raises(AssertionError, match="echo other"):
        reader.follow(Step("echo other\n", "one\n"))
    with pytest.raises(AssertionError, match="another id"):
        reader.follow(Step(f"echo {second}\n", f"{first}\n"))
    with pytest.raises(AssertionError, match="two ids"):
        reader.follow(Step(f"echo {first}\n", f"{third}\n"))
