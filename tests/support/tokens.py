"""Tokens of every kind, good and bad, and channels that send them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.local.identities import KEY_ID, Issuer

HOUR_S: Final = 3_600


def bad_tokens(issuer: Issuer, subject: str, role: str = "") -> dict[str, tuple[str | None, str]]:
    """Tokens that must be refused, by what is wrong with each, and the reason of the refusal.

    Each would name a caller that is admitted if that one thing were right.
    """
    now_s = int(time.time())
    good = issuer.token(subject, role)
    return {
        "no token": (None, "TOKEN_MISSING"),
        "garbage": ("garbage", "TOKEN_INVALID"),
        "three parts of garbage": ("a.b.c", "TOKEN_INVALID"),
        "expired": (issuer.token(subject, role, exp=now_s - HOUR_S), "TOKEN_EXPIRED"),
        "expires after any float": (issuer.token(subject, role, exp=10**400), "TOKEN_INVALID"),
        "not yet valid": (issuer.token(subject, role, nbf=now_s + HOUR_S), "TOKEN_INVALID"),
        "wrong audience": (issuer.token(subject, role, aud="another"), "TOKEN_INVALID"),
        "wrong issuer": (issuer.token(subject, role, iss="https://evil"), "TOKEN_INVALID"),
        "alg none": (unsigned(good), "TOKEN_INVALID"),
        "signed with the public key": (hmac_signed(good, issuer), "TOKEN_INVALID"),
        "unknown kid": (with_header(good, kid="another"), "TOKEN_INVALID"),
        "another's signature": (forged(subject, role), "TOKEN_INVALID"),
        "too long": (issuer.token(subject, role, more="x" * 5_000), "TOKEN_INVALID"),
    }


def forged(subject: str, role: str = "") -> str:
    """A token with another's signature."""
    return Issuer(Ed25519PrivateKey.generate()).token(subject, role)


def unsigned(token: str) -> str:
    """The token with ``alg`` none and no signature."""
    _, payload, _ = token.split(".")
    return f"{encoded({'alg': 'none', 'typ': 'JWT', 'kid': KEY_ID})}.{payload}."


def hmac_signed(token: str, issuer: Issuer) -> str:
    """The token signed with HMAC, whose secret is the public key, which everyone knows."""
    _, payload, _ = token.split(".")
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': KEY_ID})}.{payload}"
    secret = base64.urlsafe_b64decode(json.loads(issuer.jwks())["keys"][0]["x"] + "==")
    return f"{text}.{_text(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def with_header(token: str, **header: Any) -> str:
    """The token with other fields in its header, which its signature does not cover then."""
    old, payload, signature = token.split(".")
    fields = json.loads(base64.urlsafe_b64decode(old + "=="))
    return f"{encoded({**fields, **header})}.{payload}.{signature}"


def encoded(part: Mapping[str, Any]) -> str:
    """A part of a token."""
    return _text(json.dumps(part).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Authorized:
    """A channel whose calls send a token, as stubs use channels."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self.channel = channel
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def unary_unary(self, path: str, **coding: Any) -> Any:
        return self._sending(self.channel.unary_unary(path, **coding))

    def unary_stream(self, path: str, **coding: Any) -> Any:
        return self._sending(self.channel.unary_stream(path, **coding))

    def _sending(self, call: Any) -> Any:
        def send(request: Any, *, timeout: float | None = None) -> Any:
            return call(request, timeout=timeout, metadata=self._metadata)

        return send
