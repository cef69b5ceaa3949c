"""The tests, files, commands and settings that the documents name exist."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from common import failpoints
from deploy import reference
from deploy.local.plan import PROJECT

PAGES: Final = sorted(
    [
        *(PROJECT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
        *(PROJECT / "docs").rglob("*.md"),
    ]
)
every_page: Final = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
_FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_CODE: Final = re.compile(r"`([^`\n]+)`")
# A path of the project in code font has a directory or one of these suffixes.
_PATH: Final = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|proto|txt|toml))")
_MAKE: Final = re.compile(r"\bmake ([a-z][a-z0-9-]*)")
_SETTING: Final = re.compile(r"\bTALLY_[A-Z0-9_]*[A-Z0-9]\b")
_ROOMS: Final = {
    path.name
    for service in PROJECT.glob("*_service")
    for path in (*service.glob("*.py"), *service.glob("*/"))
} | {f"{path.name}.py" for path in PROJECT.glob("*_service/*/")}
"""Files of a service, such as ``model.py``; a package of that name may have replaced one."""


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


@cache
def names_in(path: Path) -> frozenset[str]:
    """The names that a module defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


def links(page: Path) -> list[tuple[str, str]]:
    return [(match["text"].strip("`"), match["target"]) for match in _LINK.finditer(prose(page))]


def missing_tests(page: Path) -> list[str]:
    """Links named after a test whose file does not define it."""
    return [
        f"{target}::{text}"
        for text, target in links(page)
        if text.lower().startswith("test")
        and text.isidentifier()
        and text not in names_in((page.parent / target).resolve())
    ]


@every_page
def test_every_linked_file_and_test_exists(page: Path) -> None:
    local = [target for _, target in links(page) if not target.startswith("https://")]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert missing == []
    assert missing_tests(page) == []


@every_page
def test_every_path_in_code_font_exists(page: Path) -> None:
    unlinked = _LINK.sub("", prose(page))
    named = [text for text in _CODE.findall(unlinked) if _PATH.fullmatch(text)]
    missing = [
        text
        for text in named
        if not (PROJECT / text).exists()
        and not any(PROJECT.glob(f"*_service/{text}"))
        and text not in _ROOMS
    ]
    assert missing == []


def test_every_guarantee_links_a_test() -> None:
    readme = PROJECT / "README.md"
    table = prose(readme).split("\n## What is guaranteed")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        assert re.match(r"\[`test_\w+`\]\(tests/", row[1]), row[0]


def rows_of(page: Path, section: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    text = prose(page).split(f"\n## {section}")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def test_every_threat_and_every_risk_names_a_test() -> None:
    """Tests, or rules about manifests, that fail if the defence is gone."""
    page = PROJECT / "docs" / "security.md"
    threats, risks = rows_of(page, "What is defended"), rows_of(page, "OWASP API Security")
    assert len(threats) > 25
    assert [row[0].split()[0] for row in risks] == [f"API{number}" for number in range(1, 11)]
    for threat, _, proofs in (*threats, *risks):
        named = [(match["text"].strip("`"), match["target"]) for match in _LINK.finditer(proofs)]
        assert named, threat
        missing = [
            text for text, target in named if text not in names_in((page.parent / target).resolve())
        ]
        assert missing == [], threat


def test_link_to_a_missing_test_is_detected(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_one() -> None: ...\n")
    page = tmp_path / "page.md"
    page.write_text("[`test_one`](test_it.py) [`test_two`](test_it.py)\n")
    assert missing_tests(page) == ["test_it.py::test_two"]


@cache
def make_targets() -> frozenset[str]:
    text = subprocess.run(
        ["make", "--silent", "help"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    return frozenset(line.split()[0] for line in text.splitlines())


@every_page
def test_every_command_exists(page: Path) -> None:
    code = [*_CODE.findall(prose(page)), *re.findall(r"^    (.*)$", prose(page), re.MULTILINE)]
    named = {name for text in code for name in _MAKE.findall(text)}
    assert named <= make_targets()


@every_page
def test_every_setting_exists(page: Path) -> None:
    known = set(_SETTING.findall(reference.page())) | {"TALLY_SECRETS_DIR", failpoints.VARIABLE}
    for settings in reference.SETTINGS:
        own = f"TALLY_{settings.service.upper()}_"
        known |= {own + name.upper() for name in settings.model_fields}
    assert set(_SETTING.findall(prose(page))) <= known


def test_the_generated_pages_match_the_code() -> None:
    assert reference.main(check=True) == 0


@pytest.mark.parametrize(
    "name", ["settings.md", "metrics.md", "errors.md", "access.md", "licences.md"]
)
def test_drift_of_a_generated_page_is_detected(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / name
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    assert reference.main(check=True) == 1
    assert reference.main() == 0
    assert reference.main(check=True) == 0
    page.write_text(page.read_text().replace("the", "The", 1))
    assert reference.main(check=True) == 1
    assert "make docs" in capsys.readouterr().err
