"""Races run with Redis and without, unless the test or its file says which."""

from __future__ import annotations

import pytest

from deploy.local.valkey import ValkeyServer


@pytest.fixture(scope="module", params=["redis", "no-redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """The first line of defence must change no outcome, and must not be needed."""
    if request.param == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url
