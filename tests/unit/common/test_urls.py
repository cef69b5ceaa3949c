"""URLs of a Redis that several servers provide."""

from __future__ import annotations

import pytest

from common.urls import RedisNodes, redis_nodes


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis://h:1/0", None),
        ("rediss://h:1/0", None),
        (
            "redis+sentinel://u:p%40@one:1,two:2/service/3",
            RedisNodes((("one", 1), ("two", 2)), "service", 3, "u", "p@", tls=False),
        ),
        (
            "rediss+cluster://:p@one:1,[::1]:2",
            RedisNodes((("one", 1), ("::1", 2)), "", 0, None, "p", tls=True),
        ),
        ("redis+cluster://one:1/", RedisNodes((("one", 1),), "", 0, None, None, tls=False)),
    ],
)
def test_a_url_names_the_servers_by_which_redis_is_found(
    url: str, nodes: RedisNodes | None
) -> None:
    assert redis_nodes(url) == nodes
