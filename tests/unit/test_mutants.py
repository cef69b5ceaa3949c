"""Every planted bug still fits the code, and the tests that have to catch it exist."""

from __future__ import annotations

import re

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant

BUGS_MIN = 24
each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@each_mutant
def test_a_planted_bug_fits_the_code(mutant: Mutant) -> None:
    patched = mutant.patched((ROOT / mutant.file).read_text(encoding="utf-8"))
    compile(patched, mutant.file, "exec")


@each_mutant
def test_the_tests_that_catch_a_planted_bug_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"\b{re.escape(name.partition('[')[0])}\b", (ROOT / file).read_text())


def test_there_are_enough_planted_bugs_each_with_its_own_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= BUGS_MIN


def test_the_guide_has_each_planted_bug() -> None:
    text = (ROOT / "docs" / "guides" / "planted-bugs.md").read_text(encoding="utf-8")
    assert re.findall(
        r"^\| ([a-z0-9-]+) \| .* \| `[Tt]est_?\w+` \| \d+ \|$", text, re.MULTILINE
    ) == [mutant.name for mutant in MUTANTS]
