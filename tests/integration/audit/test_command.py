"""The command: its exit codes, and one clear line when it cannot look."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.audit.sources import SERVICES
from deploy.local.postgres import PostgresServer
from deploy.local.secret_files import write_json
from deploy.local.state import STATE_FILE
from tests.integration.audit.conftest import Book


async def _run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy.audit",
        "--settle-s",
        "0",
        *arguments,
        env=known | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode(), error.decode()


@pytest.fixture
def data_dir(book: Book, tmp_path: Path) -> Path:
    """A data directory whose stack uses databases of somewhere else."""
    book.gateway_record.rename(tmp_path / "gateway.sqlite3")
    write_json(tmp_path / STATE_FILE, {"audit_urls": book.urls, "outside": sorted(SERVICES)})
    return tmp_path


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> Iterator[str]:
    postgres_server.provision("coupon")
    yield postgres_server.create_database("test_audit_empty", service="coupon").audit
    postgres_server.drop_database("test_audit_empty")


def _one_line(error: str, said: str) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


async def test_books_that_balance(data_dir: Path) -> None:
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, error) == (0, "")
    assert told.endswith("The books balance.\n")


async def test_a_breach(book: Book, data_dir: Path) -> None:
    book.spoil("order", "UPDATE products SET reserved = 0")
    write_json(data_dir / STATE_FILE, {"audit_urls": book.urls, "outside": sorted(SERVICES)})
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, error) == (1, "")
    assert told.endswith("The books do NOT balance: I4.\n")
    code, told, error = await _run("--data-dir", str(data_dir), "--json")
    assert (code, error) == (1, "")
    document = json.loads(told)
    assert [line["invariant"] for line in document["invariants"] if not line["holds"]] == ["I4"]


async def test_databases_named_by_the_environment(book: Book) -> None:
    named = {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in book.urls.items()}
    record = ("--gateway-record", str(book.gateway_record))
    assert (await _run(*record, **named))[0] == 0
    code, _, error = await _run(**named)
    assert code == 2
    _one_line(error, "--gateway-record is needed")
    del named["TALLY_ORDER_AUDIT_DATABASE_URL"]
    code, _, error = await _run(*record, **named)
    assert code == 2
    _one_line(error, "TALLY_ORDER_AUDIT_DATABASE_URL is not set")


async def test_no_stack(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    for directory in (tmp_path, missing):
        code, told, error = await _run("--data-dir", str(directory))
        assert (code, told) == (2, "")
        _one_line(error, f"no stack has been started in {directory}")
    assert not missing.exists()


async def test_a_server_that_is_away(book: Book, data_dir: Path) -> None:
    urls = book.urls | {"payment": "postgresql://tally_payment_audit:x@127.0.0.1:1/none"}
    write_json(data_dir / STATE_FILE, {"audit_urls": urls, "outside": sorted(SERVICES)})
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, "the payment database: it does not answer")


async def test_a_login_that_is_refused(book: Book, data_dir: Path) -> None:
    head, _, tail = book.urls["balance"].partition("@")
    urls = book.urls | {"balance": f"{head}0@{tail}"}
    write_json(data_dir / STATE_FILE, {"audit_urls": urls, "outside": sorted(SERVICES)})
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, "the balance database: the audit role may not read it")


async def test_a_schema_that_is_missing(book: Book, data_dir: Path, empty_database: str) -> None:
    urls = book.urls | {"coupon": empty_database}
    write_json(data_dir / STATE_FILE, {"audit_urls": urls, "outside": sorted(SERVICES)})
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, "the coupon database: its schema is missing")


async def test_a_service_that_is_missing(book: Book, data_dir: Path) -> None:
    del book.urls["payment"]
    write_json(data_dir / STATE_FILE, {"audit_urls": book.urls, "outside": sorted(SERVICES)})
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, "has no payment service")


async def test_a_gateway_record_that_is_missing_or_no_record(data_dir: Path) -> None:
    record = data_dir / "gateway.sqlite3"
    record.write_bytes(b"not a database, and long enough to be taken for one" * 100)
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, f"the gateway's record {record}: file is not a database")
    record.unlink()
    code, told, error = await _run("--data-dir", str(data_dir))
    assert (code, told) == (2, "")
    _one_line(error, "there is no such file")


async def test_an_option_that_does_not_exist() -> None:
    code, told, error = await _run("--fix-it")
    assert (code, told) == (2, "")
    _one_line(error, "--fix-it")
