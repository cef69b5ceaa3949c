"""Where the report is written: ``benchmarks/results``, and a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from benchmarks.report.csv_file import as_csv
from benchmarks.report.markdown import as_markdown
from benchmarks.report.origin import Origin
from benchmarks.report.plots import plots
from benchmarks.run import Results
from deploy.local.plan import PROJECT

RESULTS: Final = PROJECT / "benchmarks" / "results"
PAGE: Final = PROJECT / "docs" / "guides" / "performance.md"
IMAGES: Final = PAGE.parent / "performance"
"""Plots that the page shows."""
_BLOCK: Final = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end -->)", re.DOTALL)


def write_report(results: Results, origin: Origin, folder: Path) -> None:
    """Write report.md, periods.csv and the plots into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images = plots(results.measurements)
    for name, image in images.items():
        (folder / name).write_bytes(image)
    shown = "".join(f"\n![{name}]({name})\n" for name in images)
    text = f"# Benchmark\n\n{as_markdown(results, origin)}{shown}"
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "periods.csv").write_text(as_csv(results), encoding="utf-8")


def publish(results: Results, origin: Origin) -> None:
    """Replace the results that the documentation shows."""
    IMAGES.mkdir(exist_ok=True)
    for name, image in plots(results.measurements).items():
        (IMAGES / name).write_bytes(image)
    page = PAGE.read_text(encoding="utf-8")
    block = as_markdown(results, origin)
    PAGE.write_text(_BLOCK.sub(lambda _match: block, page), encoding="utf-8")
