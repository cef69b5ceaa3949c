"""The public keys that tokens are verified with, from a JWKS (RFC 7517)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

ALGORITHMS: Final = {
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", None): "RS256",
}
"""The one algorithm of each type of key, by ``kty`` and ``crv``. None is symmetric: with one that
is, whoever knows the public key could sign."""
RSA_BITS_LEAST: Final = 2048
_PRIVATE: Final = frozenset({"d", "k", "p", "q"})


class UnusableKeys(ValueError):  # noqa: N818 - a state, not a fault
    """The JWKS has no key that tokens can be verified with. The text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and its one algorithm."""

    algorithm: str
    key: jwt.PyJWK
    source: Mapping[str, object]
    """The key as the JWKS describes it."""

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        """Whether this key made the signature, by its one algorithm."""
        return bool(self.key.Algorithm.verify(signed, self.key.key, signature))


def parse_keys(text: bytes) -> dict[str, Key]:
    """The keys of a JWKS by their ``kid``. Raises UnusableKeys.

    Left out are keys without a ``kid``, for encryption, of another algorithm, or too short, and
    private ones: a JWKS with a private key has given it to every reader.
    """
    try:
        listed = json.loads(text)["keys"]
        found = [_key(each) for each in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnusableKeys("is not a JWKS: a JSON object with a list of keys") from None
    usable = [(kid, key) for kid, key in found if key is not None]
    keys = dict(usable)
    if len(keys) < len(usable):
        raise UnusableKeys("has two keys with one kid")
    if not keys:
        raise UnusableKeys("has no public key with a kid for EdDSA, ES256 or RS256")
    return keys


def _key(described: dict[str, Any]) -> tuple[str, Key | None]:
    kid = described.get("kid")
    algorithm = ALGORITHMS.get((described.get("kty", ""), described.get("crv")))
    usable = (
        algorithm is not None
        and described.get("alg", algorithm) == algorithm
        and described.get("use", "sig") == "sig"
        and _PRIVATE.isdisjoint(described)
    )
    if not isinstance(kid, str) or not kid or not usable:
        return "", None
    try:
        key = jwt.PyJWK(described, algorithm)
    except jwt.PyJWTError:
        return kid, None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_LEAST:
        return kid, None
    assert algorithm is not None
    return kid, Key(algorithm, key, described)
