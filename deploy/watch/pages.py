"""The metrics pages of a stack's replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import httpx

from deploy.monitoring.readings import Page, Reading, read_pages

READ_LIMIT_S: Final = 1.0
"""A page that takes longer is missing in that reading."""


class PageReader:
    """Reads all pages at the same time."""

    def __init__(self, pages: Mapping[str, Sequence[str]], names: frozenset[str]) -> None:
        """``pages``: the addresses by service. ``names``: the metrics that are wanted."""
        self.replicas = {
            f"{service}-{number}": (service, address)
            for service, addresses in pages.items()
            for number, address in enumerate(addresses)
        }
        self._names = names
        self._client = httpx.AsyncClient(timeout=READ_LIMIT_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def read(self) -> Reading:
        """What the pages show now, without those of replicas that do not answer."""
        taken_s, unix_s = time.monotonic(), time.time()
        pages = await asyncio.gather(*map(self._page, self.replicas))
        answered = [page for page in pages if page is not None]
        return read_pages(answered, self._names, taken_s=taken_s, unix_s=unix_s)

    async def _page(self, replica: str) -> Page | None:
        service, address = self.replicas[replica]
        try:
            reply = await self._client.get(f"http://{address}/metrics")
            reply.raise_for_status()
        except httpx.HTTPError:
            return None
        return Page(service, replica, reply.text)
