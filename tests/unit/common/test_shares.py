"""Shares: one client gets a part of what may be held, and another one finds the rest."""

from __future__ import annotations

import pytest

from common.errors import Overloaded
from common.rpc.shares import Shares

MOST = 240


def fill(shares: Shares, client: str) -> int:
    """Take one after the other for the client until it has its share; how many it took."""
    taken = 0
    while shares.has_room(client, 1, MOST):
        shares.take(client, 1)
        taken += 1
    return taken


def test_each_client_gets_a_third_of_what_the_others_leave() -> None:
    shares = Shares()
    assert [fill(shares, client) for client in "abcd"] == [80, 53, 36, 24]


def test_what_is_given_back_may_be_taken_again() -> None:
    shares = Shares()
    fill(shares, "a")
    shares.give_back("a", 80)
    assert fill(shares, "b") == 80
    assert fill(shares, "a") == 53


@pytest.mark.parametrize(("amount", "expected"), [(MOST, True), (MOST + 1, False)])
def test_a_client_that_holds_nothing_gets_what_is_free(amount: int, expected: bool) -> None:
    assert Shares().has_room("a", amount, MOST) is expected


def test_a_place_is_free_again_after_its_use_whatever_its_end() -> None:
    shares = Shares()
    for _ in range(2):
        with pytest.raises(RuntimeError), shares.taken("a", 1):
            with pytest.raises(Overloaded), shares.taken("b", 1):
                pass
            raise RuntimeError
