"""The Dockerfile keeps the rules, and what it copies and installs is enough to run."""

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
from deploy.local.plan import PROJECT, Backends, Plan, replica_environment
from deploy.local.postgres_roles import ServiceUrls
from tests.unit.deploy.docker import dockerfile
from tests.unit.deploy.docker.dockerfile import WORKDIR, environment, ignored, last, stages

SERVICES: Final = ("balance", "coupon", "order", "payment")
LOCKS: Final = {"server": "runtime.txt", "simulator": "simulator.txt"}
RUN_S: Final = 60
CODE: Final = WORKDIR.lstrip("/")
PACKAGES: Final = "opt/tally/packages"

of_each_image = pytest.mark.parametrize("target", IMAGES)


@of_each_image
def test_images_are_built_in_stages_of_their_own(target: str) -> None:
    own = dockerfile.lineage(stages(), target)
    assert own[0].base == "${BASE}"
    # Nothing is installed or compiled in what is shipped; its files come from other stages.
    assert all(copy.stage for stage in own for copy in stage.copies())
    assert not any("install" in each.value for stage in own for each in stage.all("RUN"))


@of_each_image
def test_images_run_as_a_number_without_a_shell_and_are_labelled(target: str) -> None:
    """Kubernetes cannot see that a user with a name is not root."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(stages(), target, "USER").value)
    assert last(stages(), target, "ENTRYPOINT").words[:2] == ["python", "-m"]
    command = last(stages(), target, "CMD")
    assert command.words or not command.value
    label = last(stages(), target, "LABEL").value
    assert f'org.opencontainers.image.title="{IMAGES[target]}"' in label
    assert 'org.opencontainers.image.licenses="Apache-2.0"' in label
    # Without its ARG in the same stage, a label is empty.
    filled = re.findall(r'org.opencontainers.image.([\w.]+)="\$\{(\w+)\}"', label)
    assert dict(filled) == {
        "base.name": "BASE",
        "created": "CREATED",
        "revision": "REVISION",
        "version": "VERSION",
    }
    given = {each.value.partition("=")[0] for each in stages()[target].all("ARG")}
    assert {name for _, name in filled} <= given


def test_packages_are_those_of_the_locks_with_their_hashes() -> None:
    installs = [
        each.words
        for stage in stages().values()
        for each in stage.all("RUN")
        if {"pip", "install"} <= {*each.words}
    ]
    assert [words[-2:] for words in installs] == [
        ["-r", f"requirements/{LOCKS[each]}"] for each in IMAGES
    ]
    for words in installs:
        assert {"--require-hashes", "--only-binary=:all:"} <= {*words}


def test_environment_of_the_interpreter() -> None:
    found = environment(stages(), "server")
    assert found["PATH"].startswith("/opt/tally/venv/bin:")
    assert found["PYTHONUNBUFFERED"] == "1"
    # The root file system may be read-only, and nothing is imported from the working directory.
    assert found["PYTHONDONTWRITEBYTECODE"] == "1"
    assert found["PYTHONSAFEPATH"] == "1"


def test_replicas_have_one_arena_of_memory_in_the_image_and_in_a_local_stack() -> None:
    assert environment(stages(), "server")["MALLOC_ARENA_MAX"] == "1"
    urls = ServiceUrls("owner", "runtime", "audit")
    backends = Backends(dict.fromkeys(SERVICES, urls), "", "", "")
    for service in SERVICES:
        assert replica_environment(Plan(), service, 0, backends)["MALLOC_ARENA_MAX"] == "1"


@of_each_image
def test_code_comes_after_packages(target: str) -> None:
    """A change of code must not have the packages installed again."""
    packages, code, *_ = [copy.stage for copy in stages()[target].copies()]
    assert (packages, code) == (f"{target}-packages", f"{target}-code")
    copied = [copy.sources for copy in stages()[packages].copies()]
    assert copied == [[f"requirements/{LOCKS[target]}"]]


# ---- the context


def copied() -> list[str]:
    """What is copied out of the context."""
    copies = [copy for stage in stages().values() for copy in stage.copies() if not copy.stage]
    return [source for copy in copies for source in copy.sources]


def test_what_is_copied_exists_and_is_sent() -> None:
    for source in copied():
        assert (PROJECT / source).exists(), source
        assert not ignored(source), source
    copying = [stage for stage in stages().values() for copy in stage.copies() if not copy.stage]
    for stage in copying:
        assert last(stages(), stage.name, "WORKDIR").value == WORKDIR


def test_what_is_not_copied_is_not_sent() -> None:
    sent = {
        path.relative_to(PROJECT).as_posix()
        for top in (
            "deploy",
            "protos",
            "tests",
            "docs",
            "requirements",
            "benchmarks",
            "common",
            "tally_client",
        )
        for path in (PROJECT / top).rglob("*")
        if path.is_file() and not ignored(path.relative_to(PROJECT).as_posix())
    }
    assert sent
    for path in sent:
        assert any(path == each or path.startswith(f"{each}/") for each in copied()), path
    for path in (".git/config", ".venv/bin/python", ".tally/compose/redis/valkey.conf", "Makefile"):
        assert ignored(path), path


# ---- the images, laid out in a directory and run with nothing else


def link_packages(lock: str, to: Path) -> None:
    """What pip would install, as links to what is installed here."""
    for name in sorted(dockerfile.locked(PROJECT / "requirements" / lock)):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            # Programs and pages are outside of the packages' directory.
            if not file.parts[0].startswith("..") and Path(str(file.locate())).is_file():
                place = to / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(Path(str(distribution.locate_file(file))))


def run(root: Path, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as in the image: its PYTHONPATH, its packages, nothing of this project."""
    found = environment(stages(), target)
    path = ":".join(f"{root}{each}" for each in found["PYTHONPATH"].split(":"))
    return subprocess.run(
        # -S: this environment's site-packages, with the project on its path, stay out.
        [sys.executable, "-S", *arguments],
        env=found | {"PYTHONPATH": f"{path}:{root / PACKAGES}", "PATH": os.defpath},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The root directory of each image."""
    roots = {target: tmp_path_factory.mktemp(target) for target in IMAGES}
    for target, root in roots.items():
        dockerfile.lay_out(target, root)
        link_packages(LOCKS[target], root / PACKAGES)
    return roots


def test_every_module_that_is_copied_can_be_imported(images: dict[str, Path]) -> None:
    """Imports inside functions are not made at the start."""
    root = images["server"]
    modules = sorted(
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for base in (root / CODE, root / CODE / "protos/gen")
        for path in base.rglob("*.py")
        if "migrations" not in path.parts
        and not (base == root / CODE and path.is_relative_to(base / "protos"))
    )
    assert {"common.settings", "order_service.wiring", "tally.order.v1.order_pb2"} < set(modules)
    (root / "imports.py").write_text("".join(f"import {each}\n" for each in modules))
    ended = run(root, "server", "imports.py")
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_the_images_contain_nothing_else(images: dict[str, Path]) -> None:
    found = {
        target: {one.name for one in (root / CODE).iterdir()} for target, root in images.items()
    }
    services = {f"{each}_service" for each in SERVICES}
    assert found["server"] == {
        *("LICENSE", "protos", "common", "tally_client", "deploy"),
        *services,
    }
    assert found["simulator"] == {"LICENSE", "deploy"}
    assert not (images["simulator"] / CODE / "deploy/local/gateway/simulator.py").exists()


def test_the_audit_serves_with_what_is_copied(images: dict[str, Path]) -> None:
    """Up to the first setting that is missing."""
    ended = run(images["server"], "server", "-m", "deploy.audit", "serve")
    assert ended.stderr == "TALLY_AUDIT_CHECKPOINT: needed to serve, not set\n"
    assert ended.returncode == 2


@pytest.mark.parametrize("arguments", [["deploy.audit"], ["deploy.rebuild"], ["deploy.why", "ann"]])
def test_the_books_are_read_with_what_is_copied(
    images: dict[str, Path], arguments: list[str]
) -> None:
    ended = run(images["server"], "server", "-m", *arguments)
    assert ended.stderr == "error: TALLY_BALANCE_AUDIT_DATABASE_URL is not set\n"
    assert ended.returncode == 2


def test_the_simulator_starts_with_what_is_copied(images: dict[str, Path]) -> None:
    ended = run(images["simulator"], "simulator", "-m", "deploy.local.gateway", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "--secret-key-file" in ended.stdout


@pytest.mark.parametrize(
    ("missing", "packages", "error"),
    [
        # Up to the first setting that is missing: every import of the start is behind it.
        ("", "server", "TALLY_ORDER_DATABASE_URL: needed to serve, not set"),
        ("common", "server", "No module named 'common"),
        ("tally_client", "server", "No module named 'tally_client"),
        ("protos/gen", "server", "No module named 'tally"),
        ("order_service", "server", "No module named order_service"),
        # The packages are those of the lock, and not whatever is installed here.
        ("", "simulator", "No module named"),
    ],
)
def test_a_service_starts_only_with_every_copy_and_package(
    images: dict[str, Path], tmp_path: Path, missing: str, packages: str, error: str
) -> None:
    text = dockerfile.DOCKERFILE.read_text(encoding="utf-8")
    line = f"COPY {missing} {missing}\n" if missing else ""
    assert line in text
    dockerfile.lay_out("server", tmp_path, text.replace(line, ""))
    (tmp_path / PACKAGES).symlink_to(images[packages] / PACKAGES)
    ended = run(tmp_path, "server", "-m", "order_service")
    assert error in ended.stderr
    assert ended.returncode != 0
