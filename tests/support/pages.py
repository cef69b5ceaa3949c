"""A list, read page by page."""

from __future__ import annotations

from typing import Any


async def pages_of(method: Any, request: Any) -> list[list[Any]]:
    """The rows of each page, from that of the request to the last."""
    pages: list[list[Any]] = []
    while not pages or request.page_token:
        page = await method(request)
        pages += [list(rows) for field, rows in page.ListFields() if field.is_repeated] or [[]]
        request.page_token = page.next_page_token
    return pages
