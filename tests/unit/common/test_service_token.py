"""The token of a service's own calls: its file is read again, and a broken one changes nothing."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from common.identity.service_token import ServiceToken


async def test_the_file_is_read_again_and_the_last_good_token_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    token = ServiceToken(file)
    with capture_logs() as logged:
        for text, sent in (("two\n", "two"), ("", "two"), (" \n", "two"), ("three", "three")):
            file.write_text(text)
            await token.read_again()
            assert token.metadata == (("authorization", f"Bearer {sent}"),)
        file.unlink()
        await token.read_again()
    assert token.metadata == (("authorization", "Bearer three"),)
    events = [(line["event"], line["reason"]) for line in logged]
    assert events == [
        ("service_token_not_read", "has no token"),
        ("service_token_not_read", "No such file or directory"),
    ], "once for each failure"
