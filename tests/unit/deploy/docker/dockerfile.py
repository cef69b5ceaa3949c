"""Reads the Dockerfile and .dockerignore, and writes the files that an image would contain."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from deploy.local.plan import PROJECT

DOCKERFILE: Final = PROJECT / "deploy" / "docker" / "Dockerfile"
IGNORED: Final = PROJECT / ".dockerignore"
WORKDIR: Final = "/opt/tally/app"
"""Where every stage that copies out of the context works (a test checks it)."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a stage, its continuation lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The exec form; empty for the shell form."""
        return json.loads(self.value) if self.value.startswith("[") else []


@dataclass(frozen=True)
class Copy:
    """A COPY from the context, or from another stage."""

    stage: str
    sources: list[str]
    to: str


@dataclass(frozen=True)
class Stage:
    """A FROM and the instructions that follow it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def copies(self) -> Iterator[Copy]:
        for each in self.all("COPY"):
            words = each.value.split()
            flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
            paths = [word for word in words if not word.startswith("--")]
            yield Copy(flags.get("from", ""), paths[:-1], paths[-1])


def stages(text: str | None = None) -> dict[str, Stage]:
    """The stages by name."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    source = DOCKERFILE.read_text(encoding="utf-8") if text is None else text
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            current = found[stage] = Stage(stage, base)
        elif current is not None and name:
            current.instructions.append(Instruction(name, value.strip()))
        else:
            assert name in ("", "ARG"), f"{name} before FROM"
    return found


def lineage(all_stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those that it is made from, the first one first."""
    stage = all_stages[name]
    before = lineage(all_stages, stage.base) if stage.base in all_stages else []
    return [*before, stage]


def last(all_stages: dict[str, Stage], target: str, name: str) -> Instruction:
    """The instruction that counts for an image: the last of its kind, empty if there is none."""
    found = [each for stage in lineage(all_stages, target) for each in stage.all(name)]
    return found[-1] if found else Instruction(name, "")


def environment(all_stages: dict[str, Stage], target: str) -> dict[str, str]:
    """The variables that ENV sets in an image."""
    found = [each for stage in lineage(all_stages, target) for each in stage.all("ENV")]
    return dict(pair.split("=", 1) for each in found for pair in shlex.split(each.value))


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder: the last rule that matches decides."""
    result = False
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in map(str.strip, IGNORED.read_text(encoding="utf-8").splitlines()):
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").strip("/")
            if any(_matches(head, pattern) for head in heads):
                result = not line.startswith("!")
    return result


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return _matches(path.rsplit("/", 1)[-1], pattern[3:])
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def lay_out(target: str, root: Path, text: str | None = None) -> None:
    """Write the files of the context that an image contains, where it has them, under ``root``."""
    known = stages(text)
    for stage in lineage(known, target):
        for copy in stage.copies():
            for builder in lineage(known, copy.stage) if copy.stage else []:
                for inner in builder.copies():
                    _put(inner, root, below=copy.sources[0])


def _put(copy: Copy, root: Path, *, below: str) -> None:
    to = Path(WORKDIR, copy.to)
    if not to.is_relative_to(below):
        return
    for source in (PROJECT / each for each in copy.sources):
        for file in [source] if source.is_file() else filter(Path.is_file, source.rglob("*")):
            if not ignored(file.relative_to(PROJECT).as_posix()):
                # Of a file itself the relative path is ".".
                place = root / to.relative_to("/") / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


def locked(requirements: Path) -> set[str]:
    """The packages of a lock for this interpreter and platform, normalized."""
    text = requirements.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    wanted = [Requirement(re.split(r"\s--hash", line)[0].strip()) for line in lines]
    return {
        re.sub(r"[-_.]+", "-", each.name).lower()
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }
