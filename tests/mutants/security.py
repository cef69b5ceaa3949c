"""Planted bugs of rights in the databases, and of secrets."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_ROLES: Final = "tests/integration/services/test_roles.py::"
_SECRETS: Final = "tests/integration/start/test_secrets.py::"

SECURITY: Final = (
    Mutant(
        "ledger-may-be-rewritten",
        "the runtime role may change ledger entries",
        file="balance_service/migrations/0001_accounts_and_ledger.py",
        old="GRANT SELECT, INSERT ON ledger_entries TO",
        new="GRANT SELECT, INSERT, UPDATE ON ledger_entries TO",
        tests=(f"{_ROLES}test_a_replica_has_the_rights_that_are_listed_and_no_other",),
    ),
    Mutant(
        "databases-open-to-every-role",
        "the role of one service may connect to the database of another",
        file="deploy/local/postgres_roles.py",
        old='REVOKE ALL ON DATABASE "{database}" FROM PUBLIC;\n',
        new="",
        tests=(f"{_ROLES}test_no_role_reaches_the_database_of_another_service",),
    ),
    Mutant(
        "text-of-the-gateway-believed",
        "any text of the gateway is taken for its error code, and written to the log",
        file="payment_service/gateway/toss_responses.py",
        old='re.compile(r"[A-Z0-9_]{1,100}")',
        new='re.compile(r".{1,100}")',
        tests=(f"{_SECRETS}test_no_secret_is_in_any_output",),
    ),
    Mutant(
        "refused-token-repeated",
        "the refusal of an authorization that is no token repeats it",
        file="common/rpc/guard.py",
        old='raise TokenInvalid("the metadata must be `authorization: Bearer <token>`")',
        new='raise TokenInvalid(f"not a token: {found}")',
        tests=(f"{_SECRETS}test_no_secret_is_in_any_output",),
    ),
)
