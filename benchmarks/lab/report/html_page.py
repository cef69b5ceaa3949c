"""The report as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.report.columns import MEANINGS, NO_FIGURE, workload
from benchmarks.lab.report.plots import plots
from benchmarks.lab.report.tables import Sizes, Table, cells_of, full_table, overview

_STYLE: Final = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 2px 6px; text-align: right; white-space: nowrap; }
th { background: #f2f2f2; position: sticky; top: 0; }
td:first-child, th:first-child { text-align: left; }
tr.wrong td { background: #fbe3e4; }
tr.late td { background: #efeaf3; }
.plots { display: flex; flex-wrap: wrap; } .plots > div { flex: 1 1 560px; }
"""


def as_html(
    cells: Sequence[Cell], sizes: Sizes, origin: Sequence[str], found: Sequence[str]
) -> str:
    """``origin``: where it was run; ``found``: the sentences that its figures bear out."""
    return "\n".join(_lines(cells, sizes, origin, found))


def _lines(
    cells: Sequence[Cell], sizes: Sizes, origin: Sequence[str], found: Sequence[str]
) -> Iterator[str]:
    yield "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
    yield f"<title>Tally: the strategy lab</title><style>{_STYLE}</style></head><body>"
    yield "<h1>The strategy lab</h1>"
    yield from _list(origin)
    yield f"<p>{escape(MEANINGS).replace('*', '').replace('`', '')}</p><p>{escape(NO_FIGURE)}</p>"
    if found:
        yield "<h2>What the figures show</h2>"
        yield from _list(text.replace("*", "").replace("`", "") for text in found)
    yield "<h2>Overview</h2>"
    grid, notes = overview(cells)
    yield from _table(grid)
    yield f"<p>{'<br>'.join(map(escape, notes))}</p>"
    images = plots(cells)
    for key, experiment in EXPERIMENTS.items():
        if not cells_of(cells, key):
            continue
        yield f"<h2>{escape(experiment.title)}</h2>"
        yield f"<p>{escape(workload(experiment, sizes[key]))}</p>"
        yield from _table(full_table(cells, key, sizes[key]))
        yield "<div class='plots'>"
        for name in (f"{key}-outcomes.svg", f"{key}-times.svg"):
            yield f"<div>{images[name]}</div>"
        yield "</div>"
    yield "</body></html>"


def _list(texts: Sequence[str] | Iterator[str]) -> Iterator[str]:
    yield "<ul>"
    for text in texts:
        yield f"<li>{escape(text)}</li>"
    yield "</ul>"


def _table(table: Table) -> Iterator[str]:
    head, rows = table
    yield f"<table><thead><tr>{''.join(f'<th>{escape(text)}</th>' for text in head)}</tr></thead>"
    yield "<tbody>"
    for row in rows:
        remark = row[-1]
        kind = "wrong" if "WRONG" in remark else "late" if "did not" in remark else ""
        yield f"<tr class='{kind}'>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>"
    yield "</tbody></table>"
