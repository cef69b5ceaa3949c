"""The pages of docs/runbooks, followed on a stack of this machine as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from deploy.local.plan import PROJECT
from tests.support.prometheus import PrometheusClient

PAGES: Final = PROJECT / "docs/runbooks"
LIMIT_S: Final = 90.0
POLL_S: Final = 2.0
COMMANDS_LIMIT_S: Final = 300.0
"""An audit of a busy stack is among them."""
_BLOCK: Final = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_BASE_PORT: Final = 50050
"""Of the stack that the pages name."""
_PORT: Final = re.compile(r"\b5005\d\b")
_BLANK: Final = re.compile(r"<[\w ]+>(?!>)")
"""What a person has to fill in, such as <pid>."""
_CLUSTER_ONLY: Final = ("kubectl ",)


class Runbooks:
    """The pages, for a stack in a directory of its own instead of the project's `.tally/data`."""

    def __init__(
        self, directory: Path, data_dir: Path, base_port: int, prometheus: PrometheusClient
    ) -> None:
        """``directory``: where the commands run. It is created, and looks like the project."""
        self._directory = directory
        self._base_port = base_port
        self._prometheus = prometheus
        (directory / ".tally").mkdir(parents=True)
        (directory / ".tally/data").symlink_to(data_dir)
        for entry in PROJECT.iterdir():
            if entry.name not in {".tally", ".git"}:
                (directory / entry.name).symlink_to(entry)
        self._prelude = next(_commands(_section("README", "The commands of these pages")))

    def look(self, alert: str, filled_in: Mapping[str, str] | None = None) -> str:
        """Run what the page says under "How to look"; all that it prints.

        ``filled_in``: what a person puts in the place of <…>. Commands with others are left out, as
        are those that need a cluster.
        """
        section = _section(_page_of(alert), "How to look")
        for blank, value in (filled_in or {}).items():
            section = section.replace(blank, value)
        printed = [self._run(block) for block in _commands(section)]
        for query in _queries(section):
            printed += [
                query,
                *(f"{labels} {value:g}" for labels, value in self._prometheus.now(query)),
            ]
        return "\n".join(printed)

    async def until_shown(
        self, alert: str, sign: str, filled_in: Mapping[str, str] | None = None
    ) -> str:
        """Follow the page until it prints what matches ``sign``, as a person who looks again does;
        what it printed last.
        """
        deadline = time.monotonic() + LIMIT_S
        while True:
            printed = await asyncio.to_thread(self.look, alert, filled_in)
            if re.search(sign, printed, re.MULTILINE) or time.monotonic() > deadline:
                return printed
            await asyncio.sleep(POLL_S)

    def _run(self, commands: str) -> str:
        script = f"shopt -s expand_aliases\n{self._prelude}\n{commands}"
        script = _PORT.sub(lambda m: str(int(m[0]) - _BASE_PORT + self._base_port), script)
        file = self._directory / ".tally/followed.sh"
        file.write_text(f"{script}\n", encoding="utf-8")
        done = subprocess.run(
            ["bash", file],
            cwd=self._directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMANDS_LIMIT_S,
        )
        return done.stdout


def _environment() -> dict[str, str]:
    """That of a person's shell, and not of the `make` that may run these tests with options."""
    of_make = {"ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"}
    own = {name: value for name, value in os.environ.items() if name not in of_make}
    # Without it, the programs behind `make` use the directory of the project itself.
    return own | {"DATA_DIR": ".tally/data"}


def _page_of(alert: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"-\1", alert).lower()


def _section(page: str, title: str) -> str:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _blocks(section: str, language: str) -> Iterator[str]:
    for _, found, content in _BLOCK.findall(section):
        if found == language:
            yield textwrap.dedent(content)


def _commands(section: str) -> Iterator[str]:
    """The commands of each block that can be run on this machine."""
    for block in _blocks(section, "console"):
        commands = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        own = [
            command.rstrip()
            for command in commands
            if not command.startswith(_CLUSTER_ONLY) and not _BLANK.search(command)
        ]
        if own:
            yield "\n".join(own)


def _queries(section: str) -> Iterator[str]:
    """The queries of the blocks without a language: one begins where no bracket is open."""
    for block in _blocks(section, ""):
        query = ""
        for line in block.splitlines():
            query += f"{line}\n"
            if query.count("(") == query.count(")") and query.count("{") == query.count("}"):
                yield query.strip()
                query = ""
