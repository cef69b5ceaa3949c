"""Verifies tokens (JWT, RFC 7519): whom they name, and until when.

A token's signature costs about half of a call to verify. So everything that can refuse a token is
checked before it, and a token that was verified is remembered, by its SHA-256, until it expires.
What is remembered is forgotten when a key leaves the JWKS or changes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from common.identity.caller import SUBJECT, Caller, Kind
from common.identity.errors import TokenExpired, TokenInvalid, TooManyBadTokens
from common.identity.failures import FailureLimit
from common.identity.keys import ALGORITHMS, Key
from common.metrics import REMEMBERED_TOKENS, SIGNATURES

TOKEN_BYTES_MAX: Final = 4 * 1024
REMEMBERED_MAX: Final = 32_768
"""Verified tokens that are remembered; beyond that the oldest is forgotten. About 15 MB."""

_PROBLEMS: Final[Mapping[type[Exception], str]] = {
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "wrong audience",
    jwt.InvalidIssuerError: "wrong issuer",
    jwt.MissingRequiredClaimError: "it needs exp, iss, aud and sub",
    jwt.exceptions.InvalidSubjectError: "sub has not the form of a user_id",
}
_MALFORMED: Final = "it is not a well-formed JWT"
_UNSIGNED: Final[Any] = {
    "verify_signature": False,
    "require": ["exp", "iss", "aud", "sub"],
    **dict.fromkeys(
        ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub"), True
    ),
}
"""Checks the claims, and leaves the signature to ``Key.verifies``: the token is parsed once."""


class TokenVerifier:
    """Verifies the tokens of one issuer, for one audience."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        leeway_s: float,
        role_claim: str,
        saga_service: str,
        now_s: Callable[[], float] = time.time,  # noqa: TID251 - a token has no other clock
    ) -> None:
        """``saga_service``: the subject of the order service's tokens."""
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._role_claim = role_claim
        self._saga_service = saga_service
        self._now_s = now_s
        self._limit = FailureLimit()
        self._keys: Mapping[str, Key] = {}
        self._known: dict[bytes, Caller] = {}
        REMEMBERED_TOKENS.set_function(lambda: len(self._known))

    @property
    def has_keys(self) -> bool:
        """Whether there are keys: without them no token can be verified."""
        return bool(self._keys)

    def use_keys(self, keys: Mapping[str, Key]) -> None:
        """Verify with these keys from now on."""
        old = self._keys
        if any(kid not in keys or keys[kid].source != key.source for kid, key in old.items()):
            self._known.clear()
        self._keys = keys

    def caller_of(self, token: str, peer: Callable[[], str]) -> Caller:
        """The caller that the token names. ``peer``: gRPC's name of the peer.

        Raises TokenInvalid, TokenExpired and TooManyBadTokens.
        """
        digest = hashlib.sha256(token.encode()).digest()
        caller = self._known.get(digest)
        if caller is None:
            return self._verify(token, digest, peer)
        if caller.until_s <= time.monotonic():
            del self._known[digest]
            raise TokenExpired
        return caller

    def _verify(self, token: str, digest: bytes, peer: Callable[[], str]) -> Caller:
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenInvalid(f"it is longer than {TOKEN_BYTES_MAX} bytes")
        key, caller, signature = self._claimed(token)
        if self._limit.exceeded(peer()):
            SIGNATURES.labels("refused").inc()
            raise TooManyBadTokens
        signed = token.rpartition(".")[0].encode()
        if not key.verifies(signed, signature):
            self._limit.note(peer())
            SIGNATURES.labels("wrong").inc()
            raise TokenInvalid("wrong signature")
        SIGNATURES.labels("valid").inc()
        if len(self._known) >= REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = caller
        return caller

    def _claimed(self, token: str) -> tuple[Key, Caller, bytes]:
        """The key, the caller and the signature that the token has; the key may not have signed it.

        Anyone can write any value into a token. None may cause an error that is not a refusal.
        """
        try:
            decoded = jwt.decode_complete(
                token,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options=_UNSIGNED,
            )
            key = self._key_of(decoded["header"])
            return key, self._caller(decoded["payload"]), decoded["signature"]
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TokenInvalid(_PROBLEMS.get(type(error), _MALFORMED)) from None

    def _key_of(self, header: Mapping[str, Any]) -> Key:
        """The key that the header names by kid. ``jku``, ``x5u`` and ``jwk`` are not read."""
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS.values():
            raise TokenInvalid("its algorithm is not EdDSA, ES256 or RS256")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise TokenInvalid("unknown key (kid)")
        if key.algorithm != algorithm:
            raise TokenInvalid("its algorithm is not that of its key")
        return key

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims["sub"]
        if SUBJECT.fullmatch(subject) is None:
            raise TokenInvalid("sub has not the form of a user_id")
        left_s = int(claims["exp"]) + self._leeway_s - self._now_s()
        kind = _kind(claims.get(self._role_claim, ""))
        return Caller(
            kind,
            subject,
            time.monotonic() + left_s,
            runs_sagas=kind is Kind.SERVICE and subject == self._saga_service,
        )


def _kind(roles: object) -> Kind:
    """What a role claim, a text or a list of texts, makes of the caller; a user by default.

    Raises TokenInvalid for several kinds: which of them is meant must not be guessed.
    """
    listed = roles if isinstance(roles, list) else [roles]
    named = {role.upper() for role in listed if isinstance(role, str)}
    kinds = [kind for kind in Kind if kind.value in named]
    if len(kinds) > 1:
        raise TokenInvalid("its role is ambiguous")
    return kinds[0] if kinds else Kind.USER
