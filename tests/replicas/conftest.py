"""Four replicas of each service, as the rendered overlay says, for the tests of this directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.support.cluster import OVERLAY, Changes, Cluster, load

CHANGES = Changes(arguments={"gateway": ("--latency-ms", "5-20", "--slow-ms", "300")})

_figures = pytest.StashKey[list[str]]()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster.start(load(OVERLAY), tmp_path_factory.mktemp("pods"), CHANGES) as running:
        yield running


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line of figures that is shown at the end of the run."""
    return request.config.stash.setdefault(_figures, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the figures."""
    if figures := config.stash.get(_figures, []):
        terminalreporter.section("figures")
        for figure in figures:
            terminalreporter.write_line(figure)
