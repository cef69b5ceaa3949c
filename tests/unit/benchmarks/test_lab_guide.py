"""The guide says what the published runs show: its tables and sentences are made from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from benchmarks.lab.__main__ import lab, selected
from benchmarks.lab.choices import CHOICE
from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import NAMES as FIGURES
from benchmarks.lab.figures import Cell
from benchmarks.lab.found import FOUND
from benchmarks.lab.names import NAMES, reason
from benchmarks.lab.report import guide
from benchmarks.lab.report.columns import remark
from benchmarks.lab.report.csv_file import as_csv, from_csv
from benchmarks.lab.report.html_page import as_html
from benchmarks.lab.sentences import Medians, Sentence
from benchmarks.lab.theirs import THEIRS
from deploy.local.errors import RunnerError

PUBLISHED, SIZE = from_csv(guide.CSV.read_text(encoding="utf-8"))
SIZES: Final = {key: getattr(each, SIZE) for key, each in EXPERIMENTS.items()}
CELLS: Final = [(key, name) for key, each in EXPERIMENTS.items() for name in each.strategies]


def with_figure(experiment: str, strategy: str, **figures: float) -> list[Cell]:
    """The published cells, with other figures in one of them."""
    return [
        replace(cell, runs=[replace(run, **figures) for run in cell.runs])
        if (cell.experiment, cell.strategy) == (experiment, strategy)
        else cell
        for cell in PUBLISHED
    ]


def test_guide_shows_the_published_runs() -> None:
    page = guide.PAGE.read_text(encoding="utf-8")
    shown = guide.between("lab").search(page)
    assert shown is not None
    assert shown[0] == guide.block(PUBLISHED, SIZES)


def test_published_runs_have_every_cell() -> None:
    assert [(cell.experiment, cell.strategy) for cell in PUBLISHED] == CELLS


def test_published_books_are_wrong_where_the_strategy_is() -> None:
    wrong = {(cell.experiment, cell.strategy) for cell in PUBLISHED if cell.worst}
    assert wrong == {
        (key, name)
        for key, each in EXPERIMENTS.items()
        for name, strategy in each.strategies.items()
        if not strategy.right
    }


@pytest.mark.parametrize("sentence", FOUND, ids=lambda each: each.text[:40])
def test_sentence_names_figures_that_exist(sentence: Sentence) -> None:
    assert sentence.holds
    assert "{" in sentence.text
    assert sentence.topic in {CHOICE, *EXPERIMENTS}
    for cell, figure in sentence.figures:
        assert tuple(cell.split("/")) in CELLS
        assert figure in {*FIGURES, "wrong"}
    Medians(PUBLISHED).text(sentence)


def test_sentence_whose_figures_changed_is_reported_and_left_out() -> None:
    text = "a check before the write guards nothing"
    assert text in guide.block(PUBLISHED, SIZES).lower()
    changed = with_figure("coupons", "check", oversold=0.0)
    assert text not in guide.block(changed, SIZES).lower()
    assert any("coupons/check.oversold > 0" in line for line in guide.borne_out(changed)[1])


@pytest.mark.parametrize(("shares_ms", "says"), [(10.0, "Shares help"), (1e6, "do not help")])
def test_one_sentence_of_a_group_is_enough(shares_ms: float, says: str) -> None:
    true, untrue = guide.borne_out(with_figure("coupons", "shares", wall_ms=shares_ms))
    assert [says in sentence.text for sentence in true if sentence.group] == [True]
    assert not any("Shares" in line for line in untrue)


def test_every_cell_is_run_or_missing_for_a_reason() -> None:
    for key, experiment in EXPERIMENTS.items():
        assert set(experiment.strategies) <= set(NAMES)
        for strategy in set(NAMES) - set(experiment.strategies):
            assert reason(key, strategy)


def test_figures_of_the_reports_stand_beside_a_cell() -> None:
    assert set(THEIRS) <= set(CELLS)
    assert all("computed there" in THEIRS["charge", name] for name in ("around", "inside"))


def test_csv_is_read_as_it_was_written() -> None:
    assert as_csv(*from_csv(as_csv(PUBLISHED, SIZE))) == as_csv(PUBLISHED, SIZE)


def test_html_page_needs_no_other_file() -> None:
    page = as_html(PUBLISHED, SIZES, ["somewhere"], guide.sentences_of(PUBLISHED))
    assert page.count("<svg") >= 2 * len(EXPERIMENTS)
    assert "<script src" not in page
    assert "<link" not in page
    assert "WRONG BOOKS" in page


def test_cell_that_ran_out_of_time_says_so() -> None:
    cell = PUBLISHED[0]
    late = replace(cell.runs[0], asked=10.0, unfinished=4.0, lost=0.0, doubled=0.0, oversold=0.0)
    text = remark(replace(cell, runs=[late]), replace(SIZES["charge"], limit_s=2.0))
    assert text == "did not finish in 2 s: 6 of 10"


def test_commands_refuse_what_they_cannot_run() -> None:
    with pytest.raises(RunnerError, match="no cell 'no-such-cell'"):
        selected("deduct,no-such-cell")
    with pytest.raises(RunnerError, match="needs all cells"):
        lab(cells="deduct", publish_page=True)
    assert [name for _, name in selected("deduct/lane,orders/sorted")] == ["lane", "sorted"]
