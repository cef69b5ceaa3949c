"""The report for a reader: a table of invariant, verdict and figures, and what to know besides.

No line is longer than 98 columns, so that the demo can indent it: ids are shorter. The detailed
form breaks no line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from deploy.audit.audit_pass import KEPT_MAX, Note
from deploy.audit.databases import places_in_words
from deploy.audit.report import NOTES, Line, Report

FINDING, VERDICT, FIGURES = 40, 6, 48
"""The widths of the columns."""
GAP: Final = "  "
WIDTH: Final = FINDING + VERDICT + FIGURES + 2 * len(GAP)
DIFFERENCES_LISTED: Final = 10
NOTES_LISTED: Final = {
    Note.NEEDS_ATTENTION: 5,
    Note.STANDING: 5,
    Note.REFUNDED_OUTSIDE: 3,
    Note.FOREIGN: 3,
    Note.GIVING_BACK: 0,
    Note.UNDER_WAY: 0,
}
"""How many of each kind the short form lists."""


def as_text(report: Report, *, details: bool = False) -> str:
    """The verdict is the last line. ``details``: every figure, difference and note, unbroken."""
    return "".join(f"{line.rstrip()}\n" for line in _lines(report, details=details))


def _lines(report: Report, *, details: bool) -> Iterator[str]:
    if report.since:
        first = min(report.since.values())
        yield f"Users, products and campaigns touched since {first:%Y-%m-%d %H:%M:%S} UTC, whole:"
    yield _row("what was checked", "result", "figures")
    yield _row("-" * FINDING, "-" * VERDICT, "-" * FIGURES)
    for line in report.lines:
        yield from _rows(line, details=details)
    for line in report.lines:
        if not line.holds:
            yield ""
            yield f"{line.invariant}: {line.count:,} {'differs' if line.count == 1 else 'differ'}"
            listed = KEPT_MAX if details else DIFFERENCES_LISTED
            yield from _listed(line.differences, listed, line.more, details=details)
    yield from _notes(report, details=details)
    for text in report.left_out:
        yield ""
        yield from _broken(f"Not checked: {text}.", "", details=details)
    yield ""
    if report.databases:
        text = f"Databases read: {places_in_words(report.databases)}."
        yield from _broken(text, "", details=details)
    broken = ", ".join(report.broken)
    yield f"The books do NOT balance: {broken}." if broken else "The books balance."


def _rows(line: Line, *, details: bool) -> Iterator[str]:
    verdict = "ok" if line.holds else "BREACH"
    finding = textwrap.wrap(line.finding, FINDING - 3)
    left = [f"{line.invariant} {finding[0]}", *(f"   {more}" for more in finding[1:])]
    figures = [*line.figures] if details else [*_packed(line.figures)]
    for index in range(max(len(left), len(figures))):
        yield _row(
            left[index] if index < len(left) else "",
            "" if index else verdict,
            figures[index] if index < len(figures) else "",
        )


def _packed(figures: Sequence[str]) -> Iterator[str]:
    """The figures in lines of their column, short ones together."""
    line = ""
    for figure in figures:
        joined = f"{line}; {figure}" if line else figure
        if len(joined) <= FIGURES:
            line = joined
            continue
        if line:
            yield line
        *whole, line = textwrap.wrap(figure, FIGURES, subsequent_indent=GAP)
        yield from whole
    if line:
        yield line


def _row(finding: str, verdict: str, figures: str) -> str:
    return f"{finding:<{FINDING}}{GAP}{verdict:<{VERDICT}}{GAP}{figures}"


def _notes(report: Report, *, details: bool) -> Iterator[str]:
    present = [note for note in NOTES if report.noted(note)]
    if present:
        yield ""
    for note in present:
        listed = KEPT_MAX if details else NOTES_LISTED[note]
        texts, more = report.notes[note], report.more_notes.get(note, 0)
        yield f"{report.noted(note):,} {NOTES[note]}{':' if listed else ''}"
        if listed:
            yield from _listed(texts, listed, more, details=details)


def _listed(texts: Sequence[str], most: int, more: int, *, details: bool) -> Iterator[str]:
    for text in texts[:most]:
        yield from _broken(f"- {text}", "  ", details=details)
    left = max(len(texts) - most, 0) + more
    if left:
        yield f"    and {left:,} more{'' if details else ' (-v lists them)'}"


def _broken(text: str, indent: str, *, details: bool) -> list[str]:
    if details:
        return [f"{indent}{text}"]
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
