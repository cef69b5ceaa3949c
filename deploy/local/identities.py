"""Keys and tokens for a stack on this machine: its own issuer, as ``make up AUTH=1`` needs one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.local.secret_files import write_secret

ISSUER: Final = "https://tally.local"
AUDIENCE: Final = "tally"
ROLE: Final = "tally_role"
KEY_ID: Final = "local-1"
LIFE_S: Final = 30 * 24 * 60 * 60
"""How long tokens live: the next start of the stack makes new ones."""
ORDER: Final = "order"
TILL: Final = "till"
OPERATOR: Final = "operator"
SUBJECTS: Final = {OPERATOR: ("olga", "operator"), TILL: (TILL, "service")}
"""Subject and role of the tokens that are no user's."""
USERS: Final = ("ada", "bob")
TOKENS_OF: Final = "ada, bob, an operator and the till"
CLOSED: Final = "Calls need a token: customers, an operator, the till and sagas have their own."
OPEN: Final = (
    "Calls need no token: whoever reaches 127.0.0.1 acts for any user. With AUTH=1 they need one."
)
TILL_METHODS: Final = ("tally.balance.v1.BalanceService/ChargeBalance",)
"""What the till may call: it takes cash, and charges balances with it."""


class Issuer:
    """An issuer of tokens, with one key."""

    def __init__(self, key: Ed25519PrivateKey, key_id: str = KEY_ID) -> None:
        self._key = key
        self._key_id = key_id

    @classmethod
    def of(cls, directory: Path) -> Issuer:
        """The issuer whose key is in the directory, which gets one the first time."""
        file = directory / "signing-key.pem"
        if not file.exists():
            directory.mkdir(parents=True, exist_ok=True)
            new = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_secret(file, new.decode())
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        return cls(key)

    def jwks(self) -> str:
        """The public key, as a JWKS."""
        described = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        key = {**described, "kid": self._key_id, "alg": "EdDSA", "use": "sig"}
        return json.dumps({"keys": [key]}, indent=2) + "\n"

    def token(self, subject: str, role: str = "", **claims: Any) -> str:
        """A token for the subject, a user unless ``role`` is given; ``claims`` replace others."""
        now_s = int(time.time())
        standard = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now_s}
        of_role = {ROLE: role} if role else {}
        payload = {**standard, "exp": now_s + LIFE_S, **of_role, **claims}
        return jwt.encode(payload, self._key, algorithm="EdDSA", headers={"kid": self._key_id})


class Identities:
    """The files that a stack with identity needs, in its data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jwks = directory / "jwks.json"
        self._order_token = directory / "order.token"
        self.issuer = Issuer.of(directory)
        write_secret(self._jwks, self.issuer.jwks())
        write_secret(self._order_token, self.issuer.token(ORDER, "service") + "\n")

    def environment(self) -> dict[str, str]:
        """The settings of every replica."""
        return {
            "TALLY_AUTH": "required",
            "TALLY_AUTH_ISSUER": ISSUER,
            "TALLY_AUTH_AUDIENCE": AUDIENCE,
            "TALLY_AUTH_JWKS": str(self._jwks),
            "TALLY_AUTH_SERVICES": json.dumps({TILL: TILL_METHODS}),
            "TALLY_ORDER_SERVICE_TOKEN_FILE": str(self._order_token),
        }

    def token_of(self, name: str) -> str:
        """A token of the operator or the till by their names, of a user by any other."""
        return self.issuer.token(*SUBJECTS.get(name, (name, "")))

    def write_tokens(self, *users: str) -> Path:
        """Write tokens of these users, the operator and the till for a shell; returns the file."""
        file = self._directory / "tokens.sh"
        names = (*users, *SUBJECTS)
        write_secret(
            file, "".join(f"{variable_of(name)}={self.token_of(name)}\n" for name in names)
        )
        return file


def variable_of(name: str) -> str:
    """The shell variable with the token of this name."""
    return name.upper()
