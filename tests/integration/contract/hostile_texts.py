"""Texts that attack whoever takes a part of them for something else than text."""

from __future__ import annotations

from typing import Final

TEXTS: Final[dict[str, str]] = {
    "SQL that ends a string": "x' OR '1'='1",
    "SQL that drops a table": "x'); DROP TABLE payments; --",
    "SQL with dollar quotes": "$$; SELECT pg_sleep(9); $$",
    "SQL in a comment": "/*x*/ UNION SELECT 1",
    "LIKE and escapes": r"%_\%\_\\",
    "an array of PostgreSQL": '{NULL,"a",b}',
    "JSON that ends a string": '"}, {"state": "PAID"',
    "JSON that is escaped": r"\u0000\u202e",
    "Lua that ends a string": "' .. redis.call('FLUSHALL') .. '",
    "Lua with long brackets": "]] redis.call('FLUSHALL') --[[",
    "a pattern of Redis": "*[a-z]?",
    "a hash tag of Redis Cluster": "{payments}",
    "commands of Redis": "x\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "a line of a log": '\r\n{"event": "forged", "level": "info"}',
    "a header of HTTP": "x\r\nset-cookie: a=b\r\n\r\n",
    "NUL": "\0",
    "NUL in the middle": "a\0b",
    "commands of a terminal": "\x1b]0;forged\x07\x1b[2J",
    "C1 controls": "\x85\x9b31m",
    "bidi overrides": "\u202egnp.\u202cexe",
    "bidi isolates": "\u2066x\u2069",
    "characters without width": "a\u200bb\ufeffc",
    "separators of lines": "a\u2028b\u2029c",
    "another form of an ASCII letter": "ａｄｍｉｎ",
    "not normalized": "e\u0301",
    "noncharacters": "\ufffe\U0010ffff",
    "formats of printf": "%s%n%x%p%100000d",
    "formats of Python": "{0.__class__.__mro__} {request_id!r:>9999}",
    "templates": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %> {% debug %}",
    "lookups of Log4j": "${jndi:ldap://127.0.0.1/a}",
    "HTML": "<script>alert(1)</script>",
    "a shell's": "$(reboot) `reboot` ; reboot | reboot",
    "a path": "../../../../etc/passwd",
    "a URL": "http://169.254.169.254/latest/meta-data?a=b#c",
}
"""By what they are. No id of the contract may have such a text."""

IDS: Final = ("--", "...", ":", "@", "null", "-1", "__proto__", "DROP", "balance:user:x")
"""Texts that ids may have, and that mean something elsewhere."""

BYTES: Final[dict[str, bytes]] = {
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xc0\x80",
    "an overlong quote": b"\xe0\x80\xa7",
    "a surrogate": b"\xed\xa0\x80",
    "above Unicode": b"\xf5\x80\x80\x80",
    "a lone continuation": b"a\x80",
    "a cut sequence": b"a\xe2\x82",
    "Latin-1": b"\xe9\xff\xfe",
}
"""Bytes that are no UTF-8."""
