"""Books that balance, and books that cannot be seen."""

from __future__ import annotations

from deploy.audit.__main__ import as_text
from deploy.audit.audit import Limits, audit
from tests.integration.audit.conftest import Book

AT_ONCE = Limits(settle_s=0.0)


async def test_a_clean_book_passes_with_its_figures(book: Book) -> None:
    report = await audit(book.sources, AT_ONCE)
    text = as_text(report)
    print(text)
    assert report.holds, text
