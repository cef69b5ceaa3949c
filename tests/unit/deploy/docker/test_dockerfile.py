"""The Dockerfile keeps the rules, and what it copies is enough to run, with what it installs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from deploy.docker.image import IMAGES
from deploy.local.plan import PROJECT
from tests.unit.deploy.docker import dockerfile
from tests.unit.deploy.docker.dockerfile import Stage, copies, environment, ignored, last, stages

TARGETS: Final = tuple(IMAGES)
SERVICES: Final = ("balance", "coupon", "order", "payment")
LOCKS: Final = {"server": "runtime.txt", "simulator": "simulator.txt"}
RUN_S: Final = 60
PACKAGES: Final = "/opt/tally/packages"


def test_targets_are_built_in_stages_of_their_own() -> None:
    found = stages()
    for target in TARGETS:
        own = dockerfile.lineage(found, target)
        assert own[0].base == "${BASE}"
        # Nothing is installed or compiled in what is shipped; its files come from other stages.
        assert all(copy.stage for stage in own for copy in copies(stage))
        assert not any("install" in each.value for stage in own for each in stage.all("RUN"))


@pytest.mark.parametrize("target", TARGETS)
def test_runs_as_a_number_that_is_not_root(target: str) -> None:
    user = last(stages(), target, "USER")
    assert user is not None
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.value)


@pytest.mark.parametrize("target", TARGETS)
def test_starts_without_a_shell(target: str) -> None:
    entry, command = last(stages(), target, "ENTRYPOINT"), last(stages(), target, "CMD")
    assert entry is not None
    assert entry.words is not None
    assert entry.words[:2] == ["python", "-m"]
    assert command is None or command.words is not None


def test_packages_are_those_of_the_locks_with_their_hashes() -> None:
    installs = [
        each.words or []
        for stage in stages().values()
        for each in stage.all("RUN")
        if "install" in (each.words or []) and "pip" in (each.words or [])
    ]
    assert [words[-1] for words in installs] == [f"requirements/{LOCKS[each]}" for each in TARGETS]
    for words in installs:
        assert "--require-hashes" in words
        assert "--only-binary=:all:" in words
        assert words[-2] == "-r"


def test_environment_of_the_interpreter() -> None:
    found = environment(stages(), "server")
    assert found["PATH"].startswith("/opt/tally/venv/bin:")
    assert found["PYTHONUNBUFFERED"] == "1"
    # The root file system may be read-only, and nothing is imported from the working directory.
    assert found["PYTHONDONTWRITEBYTECODE"] == "1"
    assert found["PYTHONSAFEPATH"] == "1"


def test_labels_and_pinned_user_agree() -> None:
    for target in TARGETS:
        label = last(stages(), target, "LABEL")
        assert label is not None
        assert f'org.opencontainers.image.title="{IMAGES[target]}"' in label.value
        assert 'org.opencontainers.image.licenses="Apache-2.0"' in label.value


def copied() -> list[tuple[Stage, str]]:
    return [
        (stage, source)
        for stage in stages().values()
        for copy in copies(stage)
        if not copy.stage
        for source in copy.sources
    ]


def test_what_is_copied_exists_and_is_sent() -> None:
    for _, source in copied():
        assert (PROJECT / source).exists(), source
        assert not ignored(source), source
    builder = last(stages(), "builder", "WORKDIR")
    assert builder is not None
    assert builder.value == "/opt/tally/app"
    assert not any(stage.all("WORKDIR") for stage, _ in copied())


def test_nothing_is_sent_that_is_not_copied() -> None:
    sent = {
        path.relative_to(PROJECT).as_posix()
        for top in ("deploy", "protos", "tests", "docs", "requirements", "benchmarks", "common")
        for path in (PROJECT / top).rglob("*")
        if path.is_file() and not ignored(path.relative_to(PROJECT).as_posix())
    }
    sources = [source for _, source in copied()]
    assert sent
    for path in sent:
        assert any(path == each or path.startswith(f"{each}/") for each in sources), path
    for path in (".git/config", ".venv/bin/python", ".tally/compose/redis/valkey.conf", "Makefile"):
        assert ignored(path), path


def test_code_comes_after_packages() -> None:
    """A change of code must not have the packages installed again."""
    for target in TARGETS:
        givers = [copy.stage for copy in copies(stages()[target])]
        assert givers[:2] == [f"{target}-packages", f"{target}-code"]
        assert [copy.sources for copy in copies(stages()[givers[0]])] == [
            [f"requirements/{LOCKS[target]}"]
        ]


# ---- what it says is done: the files laid out, and run with nothing else


def link_packages(lock: str, to: Path) -> None:
    """What pip would install, as links to what is installed here."""
    to.mkdir(parents=True)
    for name in sorted(dockerfile.locked(PROJECT / "requirements" / lock)):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            # Programs and pages are outside of the packages' directory.
            if not file.parts[0].startswith("..") and Path(str(file.locate())).is_file():
                place = to / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(Path(str(distribution.locate_file(file))))


def started(root: Path, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module run as in the image: its PYTHONPATH, its packages, nothing of this project."""
    found = environment(stages(), target)
    path = ":".join(f"{root}{each}" for each in found["PYTHONPATH"].split(":"))
    variables = {name: value for name, value in found.items() if name != "PATH"}
    return subprocess.run(
        # -S: this environment's site-packages, with the project on its path, stay out.
        [sys.executable, "-S", "-m", *arguments],
        env=variables | {"PYTHONPATH": f"{path}:{root}{PACKAGES}", "PATH": os.defpath},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("server")
    dockerfile.lay_out("server", root)
    link_packages("runtime.txt", root / PACKAGES.lstrip("/"))
    return root


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("simulator")
    dockerfile.lay_out("simulator", root)
    link_packages("simulator.txt", root / PACKAGES.lstrip("/"))
    return root


@pytest.mark.parametrize("service", SERVICES)
def test_services_start_with_what_is_copied(server: Path, service: str) -> None:
    """As far as its first need: every import has been made by then."""
    ended = started(server, "server", f"{service}_service")
    assert f"TALLY_{service.upper()}_" in ended.stderr
    assert "not set" in ended.stderr
    assert ended.returncode == 2


def test_every_module_that_is_copied_can_be_imported(server: Path) -> None:
    """Imports inside functions are not made at the start."""
    code = server / "opt/tally/app"
    modules = sorted(
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for base in (code, code / "protos/gen")
        for path in base.rglob("*.py")
        if "migrations" not in path.parts
        and path.name != "__main__.py"
        and not (base == code and path.is_relative_to(code / "protos"))
    )
    assert {"common.rpc.server", "order_service.wiring", "tally.order.v1.order_pb2"} < set(modules)
    (server / "imports.py").write_text("".join(f"import {each}\n" for each in modules))
    ended = subprocess.run(
        [sys.executable, "-S", str(server / "imports.py")],
        env=environment(stages(), "server")
        | {
            "PYTHONPATH": f"{code}:{code}/protos/gen:{server}{PACKAGES}",
            "PATH": os.defpath,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_the_images_hold_nothing_else(server: Path, simulator: Path) -> None:
    assert {each.name for each in (server / "opt/tally/app").iterdir()} == {
        "LICENSE",
        "protos",
        "common",
        *(f"{each}_service" for each in SERVICES),
    }
    assert {each.name for each in (simulator / "opt/tally/app").iterdir()} == {"LICENSE", "deploy"}
    assert not (simulator / "opt/tally/app/deploy/local/gateway/simulator.py").exists()


def test_the_simulator_starts_with_what_is_copied(simulator: Path) -> None:
    ended = started(simulator, "simulator", "deploy.local.gateway", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "--secret-key-file" in ended.stdout


@pytest.mark.parametrize("missing", ["common", "protos/gen", "order_service"])
def test_control_of_a_copy_that_is_missing(server: Path, tmp_path: Path, missing: str) -> None:
    text = dockerfile.DOCKERFILE.read_text(encoding="utf-8")
    line = f"COPY {missing} {missing}\n"
    assert line in text
    dockerfile.lay_out("server", tmp_path, stages(text.replace(line, "")))
    (tmp_path / PACKAGES.lstrip("/")).symlink_to(server / PACKAGES.lstrip("/"))
    ended = started(tmp_path, "server", "order_service")
    assert "No module named" in ended.stderr
    assert ended.returncode == 1


def test_control_of_a_package_that_is_missing(server: Path, tmp_path: Path) -> None:
    """The packages are those of the lock, and not whatever is installed here."""
    dockerfile.lay_out("server", tmp_path)
    link_packages("simulator.txt", tmp_path / PACKAGES.lstrip("/"))
    ended = started(tmp_path, "server", "order_service")
    assert "No module named" in ended.stderr
