"""Where the lab's report is written: ``benchmarks/results/lab``, and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.lab.figures import Cell
from benchmarks.lab.report import guide
from benchmarks.lab.report.csv_file import as_csv, from_csv
from benchmarks.lab.report.html_page import as_html
from benchmarks.lab.report.plots import plots
from benchmarks.lab.report.tables import Sizes
from benchmarks.report.files import RESULTS as BENCH_RESULTS

RESULTS: Final = BENCH_RESULTS / "lab"


def write_report(
    cells: Sequence[Cell], sizes: Sizes, size: str, origin: Sequence[str], folder: Path
) -> None:
    """Write runs.csv, report.html and the plots into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.csv").write_text(as_csv(cells, size), encoding="utf-8")
    page = as_html(cells, sizes, origin, guide.sentences_of(cells))
    (folder / "report.html").write_text(page, encoding="utf-8")
    for name, image in plots(cells).items():
        (folder / name).write_text(image, encoding="utf-8")


def publish(cells: Sequence[Cell], sizes: Sizes, size: str, origin: Sequence[str]) -> None:
    """Replace the CSV, the HTML page and the block of the guide that the documentation shows."""
    guide.FOLDER.mkdir(exist_ok=True)
    text = as_csv(cells, size)
    guide.CSV.write_text(text, encoding="utf-8")
    # With the digits that the CSV has: what is published can be made from it again.
    cells, _ = from_csv(text)
    page = as_html(cells, sizes, origin, guide.sentences_of(cells))
    guide.HTML.write_text(page, encoding="utf-8")
    guide.put(guide.PAGE, "origin", "".join(f"- {line}\n" for line in origin))
    guide.put(guide.PAGE, "lab", guide.block(cells, sizes))
