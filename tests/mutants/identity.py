"""Planted bugs of identity and access."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_TOKENS: Final = "tests/unit/common/test_tokens.py::"
_METHODS: Final = "tests/integration/identity/test_every_method.py::"
_CALLS: Final = "tests/integration/identity/test_calls.py::"
_JWKS: Final = "tests/integration/identity/test_jwks.py::"
_PEERS: Final = "tests/integration/order/test_peers.py::"

IDENTITY: Final = (
    Mutant(
        "user-for-another",
        "a user's token acts for every user",
        file="common/rpc/access.py",
        old="            if user_id != caller.subject:\n",
        new="            if not user_id:\n",
        tests=(f"{_METHODS}test_callers_who_may_not_are_refused",),
    ),
    Mutant(
        "every-caller-admitted",
        "a good token is enough for every method",
        file="common/rpc/access.py",
        old="        if caller.kind not in self._kinds:\n",
        new="        if not self._kinds:\n",
        tests=(f"{_METHODS}test_callers_who_may_not_are_refused",),
    ),
    Mutant(
        "every-service-trusted",
        "a service has every method that admits services",
        file="common/rpc/access.py",
        old="caller.subject not in self._services:",
        new="not caller.subject:",
        tests=(f"{_METHODS}test_callers_who_may_not_are_refused",),
    ),
    Mutant(
        "signature-not-verified",
        "a token is believed without its signature",
        file="common/identity/tokens.py",
        old="        if not key.verifies(signed, signature):\n",
        new="        if not key:\n",
        tests=(f"{_METHODS}test_callers_who_are_not_known_are_refused",),
    ),
    Mutant(
        "expired-token-remembered",
        "a token that was verified once is accepted for ever",
        file="common/identity/tokens.py",
        old="        if caller.until_s <= time.monotonic():\n",
        new="        if caller.until_s <= 0:\n",
        tests=(f"{_TOKENS}test_a_remembered_token_expires",),
    ),
    Mutant(
        "withdrawn-key-remembered",
        "tokens of a key that has left the JWKS are still accepted",
        file="common/identity/tokens.py",
        old="            self._known.clear()\n",
        new="            pass\n",
        tests=(f"{_TOKENS}test_a_key_that_leaves_takes_its_tokens_along",),
    ),
    Mutant(
        "stream-outlives-its-token",
        "a stream goes on when its token has expired",
        file="common/rpc/open_streams.py",
        old="call_later(left_s, self.end, task, TokenExpired())",
        new="call_later(left_s + 3_600, self.end, task, TokenExpired())",
        tests=(f"{_CALLS}test_a_stream_ends_with_its_token",),
    ),
    Mutant(
        "saga-ids-not-reserved",
        "anyone may use the request_ids of a saga's steps",
        file="common/rpc/guard.py",
        old="        if self.refuse_reserved_ids is not None:\n",
        new="        if self.refuse_reserved_ids is not None and self.caller is None:\n",
        tests=(f"{_CALLS}test_request_ids_of_sagas_are_reserved",),
    ),
    Mutant(
        "origin-from-the-request-id",
        "a call with a saga's request_id counts as a saga's while identity is off",
        file="common/identity/origin.py",
        old="        return Origin.UNVERIFIED\n",
        new="        return Origin.SAGA\n",
        tests=(f"{_PEERS}test_effects_under_request_ids_that_look_like_a_sagas_are_foreign",),
    ),
    Mutant(
        "metadata-passes-a-pause",
        "whoever sends the order service's metadata passes a pause",
        file="common/rpc/handlers.py",
        old="        return given.caller is not None and given.caller.runs_sagas\n",
        new="        return is_marked(context)\n",
        tests=(f"{_CALLS}test_only_the_order_service_passes_a_pause",),
    ),
    Mutant(
        "redirected-keys",
        "a redirect of the JWKS is followed, to keys of anyone",
        file="common/identity/jwks.py",
        old="allow_redirects=False",
        new="allow_redirects=True",
        tests=(f"{_JWKS}test_the_last_good_keys_outlive_an_answer_without_keys",),
    ),
)
