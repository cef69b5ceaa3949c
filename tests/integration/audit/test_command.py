"""The command: its exit codes, and one line when the books cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy.engine import make_url

from deploy.local.plan import PROJECT, SERVICES
from deploy.local.postgres import PostgresServer
from deploy.local.secret_files import write_json
from deploy.local.state import STATE_FILE
from tests.integration.audit.conftest import Books
from tests.integration.audit.test_foreign import EFFECTS
from tests.support.programs import run_program

GUIDE: Final = PROJECT / "docs" / "guides" / "audit.md"


async def _run(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    return await run_program("deploy.audit", "--settle-s", "0", *arguments, **environment)


async def _assert_unreadable(reason: str, *arguments: str | Path, **environment: str) -> None:
    """The command exits with 2 and prints one line with the reason."""
    code, output, error = await _run(*arguments, **environment)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert reason in error


def _write_state(data_dir: Path, urls: dict[str, str]) -> None:
    write_json(data_dir / STATE_FILE, {"audit_urls": urls, "outside": sorted(SERVICES)})


def assert_documented(document: dict[str, Any]) -> None:
    """The guide lists the fields of the JSON document and of its invariants."""
    section = GUIDE.read_text(encoding="utf-8").split("### JSON")[1].split("## ")[0]
    rows = [row.split(" | ") for row in section.splitlines() if row.startswith("| `")]
    listed = [re.findall(r"`(\w+)`", names) for names, *_ in rows]
    assert [*document] == [name for names in listed for name in names]
    [invariants] = [meaning for names, meaning in rows if "`invariants`" in names]
    assert {*document["invariants"][0]} <= {*re.findall(r"`(\w+)`", invariants)}
    assert (document["scope"], document["since"]) == ("full", None)
    assert {*document["snapshots"]} == {*SERVICES}


@pytest.fixture
def data_dir(books: Books, tmp_path: Path) -> Path:
    """A data directory whose stack uses external databases."""
    books.gateway_record.rename(tmp_path / "gateway.sqlite3")
    _write_state(tmp_path, books.urls)
    return tmp_path


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> Iterator[str]:
    postgres_server.provision("coupon")
    yield postgres_server.create_database("test_audit_empty", service="coupon").audit
    postgres_server.drop_database("test_audit_empty")


async def test_books_that_balance_exit_0(books: Books, data_dir: Path) -> None:
    code, output, error = await _run("--data-dir", data_dir)
    assert (code, error) == (0, "")
    assert output.endswith("The books balance.\n")
    place = make_url(books.urls["balance"])
    assert f"Databases read: {place.database}, " in output
    assert f" at {place.host}:{place.port}." in " ".join(output.split())
    assert str(place.password) not in output


@pytest.mark.parametrize("module", ["deploy.audit", "deploy.rebuild", "deploy.why"])
async def test_addresses_and_a_data_directory_are_refused(
    books: Books, data_dir: Path, module: str
) -> None:
    """It would be uncertain which books balance."""
    named = {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()}
    arguments = ("ann",) if module == "deploy.why" else ()
    code, output, error = await run_program(module, *arguments, "--data-dir", data_dir, **named)
    assert (code, output) == (2, "")
    assert "TALLY_BALANCE_AUDIT_DATABASE_URL is set, and a data directory is given" in error


async def test_breach_exits_1_as_text_and_as_json(books: Books, data_dir: Path) -> None:
    books.change("order", "UPDATE products SET reserved = 0")
    _write_state(data_dir, books.urls)
    code, output, error = await _run("--data-dir", data_dir)
    assert (code, error) == (1, "")
    assert output.endswith("The books do NOT balance: I4.\n")
    code, output, error = await _run("--data-dir", data_dir, "--json")
    assert (code, error) == (1, "")
    document = json.loads(output)
    assert [line["invariant"] for line in document["invariants"] if not line["holds"]] == ["I4"]
    assert_documented(document)


async def test_what_a_lost_saga_left_exits_1_on_request(books: Books, data_dir: Path) -> None:
    effect, table, _, _ = EFFECTS["coupon"]
    books.change("coupon", f"{effect} UPDATE {table} SET origin = 'UNVERIFIED'")
    _write_state(data_dir, books.urls)
    assert (await _run("--data-dir", data_dir))[0] == 0
    code, _, error = await _run("--data-dir", data_dir, "--no-foreign")
    assert (code, error) == (1, "error: 1 foreign, which --no-foreign refuses\n")


async def test_databases_named_by_the_environment(books: Books) -> None:
    named = {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()}
    record = ("--gateway-record", books.gateway_record)
    assert (await _run(*record, **named))[0] == 0
    code, output, error = await _run(**named)
    assert (code, error) == (0, "")
    assert "Not checked: the gateway's side: neither its record nor its API is known." in output
    assert "the gateway's side was left out" in " ".join(output.split())
    del named["TALLY_ORDER_AUDIT_DATABASE_URL"]
    await _assert_unreadable("TALLY_ORDER_AUDIT_DATABASE_URL is not set", *record, **named)


async def test_databases_named_by_files(books: Books, tmp_path: Path) -> None:
    for name, url in books.urls.items():
        (tmp_path / f"TALLY_{name.upper()}_AUDIT_DATABASE_URL").write_text(f"{url}\n")
    code, output, error = await _run(TALLY_SECRETS_DIR=str(tmp_path))
    assert (code, error) == (0, "")
    assert output.endswith("The books balance.\n")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TALLY_ORDER_AUDIT_DATABASE_URL", "mysql://a:pw@b/c", "must be postgresql://user:"),
        ("TALLY_PAYMENT_GATEWAY_URL", "http://127.0.0.1:1", "_SECRET_KEY is not"),
    ],
)
async def test_wrong_address_is_named_and_not_printed(
    books: Books, variable: str, value: str, reason: str
) -> None:
    named = {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()}
    code, output, error = await _run(**named | {variable: value})
    assert (code, output) == (2, "")
    assert error.startswith(f"error: {variable}")
    assert reason in error
    assert "pw" not in error


async def test_since_limits_the_audit_and_says_so(books: Books, data_dir: Path) -> None:
    books.change("order", "UPDATE products SET reserved = 0")
    _write_state(data_dir, books.urls)
    for since, code in (("2000-01-01", 1), ("2999-01-01", 0)):
        found, output, _ = await _run("--data-dir", data_dir, "--since", since)
        assert found == code, output
        first = f"Users, products and campaigns touched since {since} 00:00:00 UTC, whole:"
        assert output.startswith(first)
    _, output, _ = await _run("--data-dir", data_dir, "--since", "2999-01-01", "--json")
    document = json.loads(output)
    assert document["scope"] == "recent"
    assert document["since"]["order"] == "2999-01-01T00:00:00+00:00"


async def test_directory_without_a_stack_is_refused_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    for directory in (tmp_path, missing):
        await _assert_unreadable(
            f"no stack has been started in {directory}", "--data-dir", directory
        )
    assert not missing.exists()


def _without_password(urls: dict[str, str]) -> dict[str, str]:
    head, _, tail = urls["balance"].partition("@")
    return urls | {"balance": f"{head}0@{tail}"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda urls: urls | {"payment": "postgresql://tally_payment_audit:x@127.0.0.1:1/none"},
            "the payment database: it does not answer",
        ),
        (_without_password, "the balance database: the audit role may not read it"),
        (lambda urls: {k: urls[k] for k in urls if k != "payment"}, "has no payment service"),
    ],
    ids=["server down", "login refused", "service missing"],
)
async def test_unreadable_database_exits_2(
    books: Books, data_dir: Path, change: Callable[[dict[str, str]], dict[str, str]], reason: str
) -> None:
    _write_state(data_dir, change(books.urls))
    await _assert_unreadable(reason, "--data-dir", data_dir)


async def test_server_of_the_wrong_kind_exits_2(data_dir: Path) -> None:
    wanted = {"PGTARGETSESSIONATTRS": "standby"}
    await _assert_unreadable(
        "the balance database: it does not answer", "--data-dir", data_dir, **wanted
    )


async def test_missing_schema_exits_2(books: Books, data_dir: Path, empty_database: str) -> None:
    _write_state(data_dir, books.urls | {"coupon": empty_database})
    await _assert_unreadable("the coupon database: its schema is missing", "--data-dir", data_dir)


async def test_gateway_record_missing_or_damaged_exits_2(data_dir: Path) -> None:
    record = data_dir / "gateway.sqlite3"
    record.write_bytes(b"not a database, and long enough to be read as one" * 100)
    reason = f"the gateway's record {record}: file is not a database"
    await _assert_unreadable(reason, "--data-dir", data_dir)
    record.unlink()
    await _assert_unreadable("there is no such file", "--data-dir", data_dir)


async def test_unknown_option_exits_2() -> None:
    await _assert_unreadable("--fix-it", "--fix-it")
