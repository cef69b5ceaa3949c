"""Fingerprints of requests: stored for 30 days, so that no release may compute others."""

from __future__ import annotations

import hashlib
import json

import pytest

from common.request_key import digest_of

EVERY_CHARACTER = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


@pytest.mark.parametrize(
    "content",
    [
        ("KRW", 100, None),
        ("", False, True, -(2**63), 2**63 - 1),
        (),
        (EVERY_CHARACTER,),
    ],
    ids=["deduction", "types", "empty", "every character"],
)
def test_a_digest_is_that_of_the_first_release(content: tuple[str | int | bool | None]) -> None:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.blake2b(text.encode(), digest_size=16).digest()
    assert digest_of(*content) == expected
