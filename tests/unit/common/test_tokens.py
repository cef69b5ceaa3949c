"""Which tokens are accepted, whom they name, and for how long they are remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from common.errors import Refusal
from common.gcra import SECOND_NS
from common.identity import failures, tokens
from common.identity.caller import Kind
from common.identity.errors import TokenExpired, TokenInvalid, TooManyBadTokens
from common.identity.failures import FailureLimit
from common.identity.keys import UnusableKeys, parse_keys
from common.identity.tokens import TokenVerifier
from common.metrics import SIGNATURES
from common.peer_address import address_of
from deploy.local.identities import AUDIENCE, ISSUER, ROLE, Issuer
from tests.support.tokens import HOUR_S, bad_tokens, encoded, forged, with_header

PEER = "ipv4:10.0.0.7:40312"


def verifier(issuer: Issuer) -> TokenVerifier:
    """A verifier with the issuer's key."""
    made = TokenVerifier(
        issuer=ISSUER, audience=AUDIENCE, leeway_s=10, role_claim=ROLE, saga_service="order"
    )
    made.use_keys(parse_keys(issuer.jwks().encode()))
    return made


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer(ed25519.Ed25519PrivateKey.generate())


def problem_of(verify: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenInvalid) as caught:
        verify.caller_of(token, lambda: PEER)
    return caught.value.metadata["problem"]


class Signatures:
    """How many signatures were verified since this was made."""

    def __init__(self) -> None:
        self._before = self._counts()

    @property
    def since(self) -> dict[str, float]:
        after = self._counts()
        return {name: after[name] - before for name, before in self._before.items()}

    def _counts(self) -> dict[str, float]:
        return {
            name: SIGNATURES.labels(name)._value.get() for name in ("valid", "wrong", "refused")
        }


# -- whom a token names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ("", Kind.USER),
        ("customer", Kind.USER),
        (["customer", 7], Kind.USER),
        ({"operator": True}, Kind.USER),
        ("operator", Kind.OPERATOR),
        ("Service", Kind.SERVICE),
        (["staff", "operator"], Kind.OPERATOR),
    ],
)
def test_role_claim_decides_the_kind(issuer: Issuer, roles: Any, kind: Kind) -> None:
    caller = verifier(issuer).caller_of(issuer.token("ann", **{ROLE: roles}), lambda: PEER)
    assert (caller.kind, caller.subject) == (kind, "ann")


def test_two_roles_are_refused(issuer: Issuer) -> None:
    token = issuer.token("ann", "", **{ROLE: ["operator", "service"]})
    assert problem_of(verifier(issuer), token) == "its role is ambiguous"


@pytest.mark.parametrize(
    ("subject", "role", "runs"),
    [("order", "service", True), ("till", "service", False), ("order", "", False)],
)
def test_only_the_order_service_runs_sagas(
    issuer: Issuer, subject: str, role: str, runs: bool
) -> None:
    caller = verifier(issuer).caller_of(issuer.token(subject, role), lambda: PEER)
    assert caller.runs_sagas is runs


@pytest.mark.parametrize(
    ("kty", "key", "algorithm"),
    [
        ("OKPAlgorithm", ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        ("ECAlgorithm", ec.generate_private_key(ec.SECP256R1()), "ES256"),
        ("RSAAlgorithm", rsa.generate_private_key(65537, 2048), "RS256"),
    ],
)
def test_each_algorithm_verifies(issuer: Issuer, kty: str, key: Any, algorithm: str) -> None:
    public = json.loads(getattr(jwt.algorithms, kty).to_jwk(key.public_key()))
    verify = verifier(issuer)
    verify.use_keys(parse_keys(json.dumps({"keys": [{**public, "kid": "k"}]}).encode()))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + HOUR_S}
    token = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "k"})
    assert verify.caller_of(token, lambda: PEER).subject == "ann"


# -- what is refused -------------------------------------------------------------------------------


def test_bad_tokens_are_refused_and_only_a_wrong_signature_is_verified(issuer: Issuer) -> None:
    signatures = Signatures()
    for label, (token, reason) in bad_tokens(issuer, "ann").items():
        if token is None:
            continue
        with pytest.raises(Refusal) as caught:
            verifier(issuer).caller_of(token, lambda: PEER)
        assert caught.value.reason == reason, label
    assert signatures.since == {"valid": 0, "wrong": 1, "refused": 0}


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"sub": "a|b"}, "sub has not the form of a user_id"),
        ({"sub": ""}, "sub has not the form of a user_id"),
        ({"sub": "x" * 65}, "sub has not the form of a user_id"),
        ({"sub": None}, "it needs exp, iss, aud and sub"),
        ({"aud": None}, "it needs exp, iss, aud and sub"),
        ({"exp": None}, "it needs exp, iss, aud and sub"),
        ({"exp": "tomorrow"}, "it is not a well-formed JWT"),
        ({"exp": float("inf")}, "it is not a well-formed JWT"),
        ({"exp": float("nan")}, "it is not a well-formed JWT"),
        # Larger than any float.
        ({"exp": 10**400}, "it is not a well-formed JWT"),
        ({"nbf": "yesterday"}, "it is not a well-formed JWT"),
        ({"iat": 10**11}, "it is not valid yet"),
        ({"aud": ["another", 7]}, "wrong audience"),
    ],
)
def test_claims_of_another_form_are_refused(
    issuer: Issuer, claims: dict[str, Any], problem: str
) -> None:
    token = with_claims(issuer, claims)
    found = problem_of(verifier(issuer), token)
    assert found == problem


def with_claims(issuer: Issuer, claims: dict[str, Any]) -> str:
    """A token whose claims are replaced, also by ones that no issuer would sign."""
    header, _, signature = issuer.token("ann").split(".")
    good = jwt.decode(issuer.token("ann"), options={"verify_signature": False})
    return f"{header}.{encoded({**good, **claims})}.{signature}"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"alg": "RS256"}, "its algorithm is not that of its key"),
        ({"alg": "HS256"}, "its algorithm is not EdDSA, ES256 or RS256"),
        ({"alg": ["EdDSA"]}, "its algorithm is not EdDSA, ES256 or RS256"),
        ({"kid": 7}, "it is not a well-formed JWT"),
        ({"kid": None}, "it is not a well-formed JWT"),
        ({"kid": ""}, "unknown key (kid)"),
        ({"crit": ["exp"]}, "it is not a well-formed JWT"),
        # The signature covers the header: a key from elsewhere is never fetched.
        ({"jku": "https://evil/keys", "kid": "evil"}, "unknown key (kid)"),
        ({"x5u": "https://evil/cert", "jwk": {"kty": "OKP"}}, "wrong signature"),
    ],
)
def test_headers_of_another_form_are_refused(
    issuer: Issuer, header: dict[str, Any], problem: str
) -> None:
    assert problem_of(verifier(issuer), with_header(issuer.token("ann"), **header)) == problem


def test_deep_nesting_is_refused(issuer: Issuer) -> None:
    header, _, signature = issuer.token("ann").split(".")
    deep = "W1tb" * 1_200  # an array in an array …, in base64
    assert problem_of(verifier(issuer), f"{header}.{deep[:3_600]}.{signature}") == (
        "it is not a well-formed JWT"
    )


def test_leeway_covers_a_clock_that_differs(issuer: Issuer) -> None:
    now_s = int(time.time())
    for claim, time_s in (("exp", now_s - 5), ("nbf", now_s + 5), ("iat", now_s + 5)):
        verifier(issuer).caller_of(issuer.token("ann", "", **{claim: time_s}), lambda: PEER)
    with pytest.raises(TokenExpired):
        verifier(issuer).caller_of(issuer.token("ann", exp=now_s - 20), lambda: PEER)


# -- what is remembered ----------------------------------------------------------------------------


def test_a_token_is_verified_once(issuer: Issuer) -> None:
    verify, token, signatures = verifier(issuer), issuer.token("ann"), Signatures()
    assert len({verify.caller_of(token, lambda: PEER) for _ in range(5)}) == 1
    assert signatures.since["valid"] == 1


def test_a_remembered_token_expires(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, token = verifier(issuer), issuer.token("ann", exp=int(time.time()) + HOUR_S)
    verify.caller_of(token, lambda: PEER)
    later_s = time.monotonic() + HOUR_S + 11
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    with pytest.raises(TokenExpired):
        verify.caller_of(token, lambda: PEER)


def test_the_oldest_token_is_forgotten(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 2)
    verify, signatures = verifier(issuer), Signatures()
    made = {name: issuer.token(name) for name in "abc"}
    for name in "abcbc":
        verify.caller_of(made[name], lambda: PEER)
    assert len(verify._known) == 2
    assert signatures.since["valid"] == 3


def test_a_key_that_leaves_takes_its_tokens_along(issuer: Issuer) -> None:
    verify, token = verifier(issuer), issuer.token("ann")
    verify.caller_of(token, lambda: PEER)
    other = json.loads(Issuer(ed25519.Ed25519PrivateKey.generate()).jwks())["keys"][0]
    own = json.loads(issuer.jwks())["keys"][0]
    both = {"keys": [own, {**other, "kid": "next"}]}
    signatures = Signatures()
    verify.use_keys(parse_keys(json.dumps(both).encode()))
    verify.caller_of(token, lambda: PEER)
    assert signatures.since["valid"] == 0, "a key that is added leaves them remembered"
    verify.use_keys(parse_keys(json.dumps({"keys": both["keys"][1:]}).encode()))
    assert problem_of(verify, token) == "unknown key (kid)"


def test_another_key_under_the_same_kid_forgets_tokens(issuer: Issuer) -> None:
    verify, token = verifier(issuer), issuer.token("ann")
    verify.caller_of(token, lambda: PEER)
    other = Issuer(ed25519.Ed25519PrivateKey.generate())
    verify.use_keys(parse_keys(other.jwks().encode()))
    assert problem_of(verify, token) == "wrong signature"


# -- keys ------------------------------------------------------------------------------------------


def keys_that_are_not_usable() -> Iterator[tuple[str, Any]]:
    good = json.loads(Issuer(ed25519.Ed25519PrivateKey.generate()).jwks())["keys"][0]
    short = rsa.generate_private_key(65537, 1024).public_key()
    yield "text", "keys"
    yield "no list", {"keys": 7}
    yield "empty", {"keys": []}
    yield "no objects", {"keys": ["a"]}
    yield "without kid", {"keys": [{**good, "kid": ""}]}
    yield "for encryption", {"keys": [{**good, "use": "enc"}]}
    yield "another algorithm", {"keys": [{**good, "alg": "HS256"}]}
    yield "symmetric", {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}
    yield "private", {"keys": [{**good, "d": "c2VjcmV0"}]}
    yield "another curve", {"keys": [{**good, "crv": "X25519"}]}
    yield "broken", {"keys": [{**good, "x": "AA"}]}
    yield "twice", {"keys": [good, good]}
    yield "short", {"keys": [{**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(short)), "kid": "a"}]}


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
@pytest.mark.parametrize(("label", "jwks"), [*keys_that_are_not_usable()])
def test_a_jwks_without_a_usable_key_is_refused(label: str, jwks: Any) -> None:
    with pytest.raises(UnusableKeys):
        parse_keys(json.dumps(jwks).encode())


def test_keys_that_are_not_usable_are_left_out() -> None:
    good = json.loads(Issuer(ed25519.Ed25519PrivateKey.generate()).jwks())["keys"][0]
    jwks = {
        "keys": [{"kty": "oct", "k": "AA", "kid": "s"}, good, {**good, "kid": "e", "use": "enc"}]
    }
    assert set(parse_keys(json.dumps(jwks).encode())) == {good["kid"]}


# -- wrong signatures ------------------------------------------------------------------------------


def test_wrong_signatures_are_limited_by_address(issuer: Issuer) -> None:
    verify, good = verifier(issuer), issuer.token("ann")
    verify._limit = FailureLimit(lambda: 100 * SECOND_NS)
    verify.caller_of(good, lambda: PEER)
    for _ in range(failures.BURST):
        assert problem_of(verify, forged("ann")) == "wrong signature"
    signatures = Signatures()
    for token in (forged("ann"), issuer.token("bob")):
        with pytest.raises(TooManyBadTokens):
            verify.caller_of(token, lambda: "ipv4:10.0.0.7:1")
    assert signatures.since == {"valid": 0, "wrong": 0, "refused": 2}
    assert verify.caller_of(good, lambda: PEER).subject == "ann", "known tokens are served"
    assert verify.caller_of(issuer.token("bob"), lambda: "ipv4:10.0.0.8:1").subject == "bob"


def test_the_limit_recovers_with_time() -> None:
    now_ns = 100 * SECOND_NS
    limit = FailureLimit(lambda: now_ns)
    for _ in range(failures.BURST):
        assert not limit.exceeded(PEER)
        limit.note(PEER)
    assert limit.exceeded(PEER)
    now_ns += round(failures.INTERVAL_S * SECOND_NS)
    assert not limit.exceeded(PEER)


def test_addresses_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "ADDRESSES_MAX", 3)
    limit = FailureLimit()
    for number in range(10):
        limit.note(f"ipv4:10.0.0.{number}:1")
    assert len(limit._seen) <= 3


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:40312", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:40312", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:40312", "2001:db8:1:2::/64"),
        ("ipv6:%5B::1%5D:40312", "::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:40312", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:40312", "fe80::/64"),
        ("unix:/run/tally", "unix"),
        ("", ""),
    ],
)
def test_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
