"""Reads the Dockerfile and .dockerignore, and lays out what an image would hold."""

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

from deploy.local.plan import PROJECT

DOCKERFILE: Final = PROJECT / "deploy" / "docker" / "Dockerfile"
IGNORED: Final = PROJECT / ".dockerignore"


@dataclass(frozen=True)
class Instruction:
    """One line of a stage, its continuations joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str] | None:
        """The exec form, or None for the shell form."""
        return json.loads(self.value) if self.value.startswith("[") else None


@dataclass(frozen=True)
class Stage:
    """What stands between two FROMs."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]


def stages(text: str | None = None) -> dict[str, Stage]:
    """The stages by name."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    source = DOCKERFILE.read_text(encoding="utf-8") if text is None else text
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            current = found[stage] = Stage(stage, base)
        elif current is not None:
            current.instructions.append(Instruction(name, value.strip()))
        else:
            assert name == "ARG", f"{name} before FROM"
    return found


def lineage(all_stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is made from, the first one first."""
    stage = all_stages[name]
    before = lineage(all_stages, stage.base) if stage.base in all_stages else []
    return [*before, stage]


def last(all_stages: dict[str, Stage], target: str, name: str) -> Instruction | None:
    """The instruction that counts for an image: the last of its kind."""
    found = [each for stage in lineage(all_stages, target) for each in stage.all(name)]
    return found[-1] if found else None


def environment(all_stages: dict[str, Stage], target: str) -> dict[str, str]:
    """What ENV sets in an image."""
    found: dict[str, str] = {}
    for stage in lineage(all_stages, target):
        for each in stage.all("ENV"):
            found |= dict(pair.split("=", 1) for pair in shlex.split(each.value))
    return found


@dataclass(frozen=True)
class Copy:
    """A COPY: out of the context, or out of another stage."""

    stage: str
    sources: list[str]
    to: str


def copies(stage: Stage) -> Iterator[Copy]:
    for each in stage.all("COPY"):
        words = each.value.split()
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        paths = [word for word in words if not word.startswith("--")]
        yield Copy(flags.get("from", ""), paths[:-1], paths[-1])


def ignored(path: str, rules: str | None = None) -> bool:
    """Whether .dockerignore keeps a path from the builder; the last rule that matches decides."""
    told = False
    text = IGNORED.read_text(encoding="utf-8") if rules is None else rules
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").strip("/")
            if any(_matches(head, pattern) for head in heads):
                told = not line.startswith("!")
    return told


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return _matches(path.rsplit("/", 1)[-1], pattern[3:])
    mine, theirs = path.split("/"), pattern.split("/")
    return len(mine) == len(theirs) and all(map(fnmatchcase, mine, theirs))


def lay_out(target: str, root: Path, all_stages: dict[str, Stage] | None = None) -> None:
    """Write the files of the context that an image gets, where it gets them, under ``root``."""
    known = all_stages or stages()
    for stage in lineage(known, target):
        for copy in copies(stage):
            for giver in lineage(known, copy.stage) if copy.stage else []:
                for inner in copies(giver):
                    _put(giver, inner, root, below=copy.sources[0])


def _put(giver: Stage, copy: Copy, root: Path, *, below: str) -> None:
    # Every stage that copies out of the context works in this directory (checked by a test).
    to = Path("/opt/tally/app", copy.to)
    if not to.is_relative_to(below):
        return
    for source in copy.sources:
        for file in _files(PROJECT / source):
            relative = file.relative_to(PROJECT).as_posix()
            if not ignored(relative):
                place = root / to.relative_to("/") / file.relative_to(PROJECT / source)
                place = root / to.relative_to("/") if file == PROJECT / source else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (each for each in path.rglob("*") if each.is_file())


def locked(requirements: Path) -> set[str]:
    """The packages of a lock that this interpreter on this platform would get, normalized."""
    from packaging.requirements import Requirement

    found = set()
    text = requirements.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            wanted = Requirement(re.split(r"\s--hash", line)[0].strip())
            if wanted.marker is None or wanted.marker.evaluate():
                found.add(re.sub(r"[-_.]+", "-", wanted.name).lower())
    return found
