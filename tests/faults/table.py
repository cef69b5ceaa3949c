"""The results of the matrix, the outages and chaos, written into docs/guides/failures.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from deploy.local.plan import PROJECT
from tests.faults.matrix import Results
from tests.faults.outages import LENGTHS, Outcome
from tests.faults.places import (
    AFTER,
    BEFORE,
    PHASES,
    PLACES,
    Cell,
    Place,
    missing,
)

PAGE: Final = PROJECT / "docs" / "guides" / "failures.md"
_FAILS: Final = {BEFORE: "error", AFTER: "reply lost"}
"""Of the two columns exactly one exists at each failpoint: they share one in the table."""
_COLUMNS: Final = ("kill -9", "pause", "fails", "cancel")
_NOTES: Final = "abcdefghij"


def write(part: str, lines: Iterable[str]) -> None:
    """Replace what is between the part's two markers in the page."""
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, found, tail = rest.partition(end)
    assert found, f"{PAGE} has no markers of {part}"
    body = "\n".join(("", *lines, ""))
    PAGE.write_text(f"{head}{begin}{body}\n{end}{tail}", encoding="utf-8")


def matrix(results: Results) -> list[str]:
    """The table of the crash matrix, and its figures."""
    reasons: list[str] = []
    header = [f"{column}, {phase}" for phase in PHASES for column in _COLUMNS]
    rows = [
        [f"`{place.name}.{when}`", *_row(place, when, results, reasons)]
        for place in PLACES
        for when in (BEFORE, AFTER)
    ]
    ran = len(results.held) + len(results.broken) + len(results.never_fired)
    figures = (
        f"{len(results.held)} of {ran} cells held, {len(results.broken)} did not, "
        f"{len(results.never_fired)} never fired: {results.orders:,} orders, "
        f"{results.restarts} restarts of single processes, {results.seconds / 60:.0f} minutes."
    )
    return [
        figures,
        "",
        *_table(["failpoint", *header], rows),
        "",
        *(f"- {_NOTES[number]}: {reason}" for number, reason in enumerate(reasons)),
    ]


def _row(place: Place, when: str, results: Results, reasons: list[str]) -> Iterable[str]:
    for phase in PHASES:
        for column in _COLUMNS:
            named = _FAILS[when] if column == "fails" else column
            reason = missing(place, when, named, phase)
            if reason:
                if reason not in reasons:
                    reasons.append(reason)
                yield _NOTES[reasons.index(reason)]
            else:
                yield _result(Cell(place, when, named, phase), results)


def _result(cell: Cell, results: Results) -> str:
    if cell in results.held:
        return "✓"
    if cell in results.broken:
        return "**broken**"
    return "**never fired**" if cell in results.never_fired else "not run"


def outages(outcomes: Sequence[Outcome]) -> list[str]:
    """The table of the outages: seconds until every saga had ended, and the sagas open before."""
    by_place = {(one.dependency, one.length): one for one in outcomes}
    names = dict.fromkeys(one.dependency for one in outcomes)
    rows = [
        [name, *(_outage(by_place.get((name, length.name))) for length in LENGTHS)]
        for name in names
    ]
    return _table(["away", *(length.name for length in LENGTHS)], rows)


def _outage(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run"
    ended = "**not ended**" if outcome.ended_s is None else f"{outcome.ended_s:.0f} s"
    books = "" if outcome.held or outcome.ended_s is None else ", **books differ**"
    return f"{ended} ({outcome.open_sagas} of {outcome.orders}){books}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
