"""The refusals of calls whose caller is not known, or may not make them."""

from __future__ import annotations

from common.errors import Code, Refusal


class TokenMissing(Refusal, code=Code.UNAUTHENTICATED, reason="TOKEN_MISSING"):
    """The call has no token; send the metadata `authorization: Bearer <token>`."""


class TokenInvalid(Refusal, code=Code.UNAUTHENTICATED, reason="TOKEN_INVALID"):
    """The token is not accepted."""

    def __init__(self, problem: str) -> None:
        """``problem``: which part of the token, in a word or two from the code."""
        super().__init__(f"The token is not accepted: {problem}.", problem=problem)


class TokenExpired(Refusal, code=Code.UNAUTHENTICATED, reason="TOKEN_EXPIRED"):
    """The token has expired; call again with a new one."""


class NotPermitted(Refusal, code=Code.PERMISSION_DENIED, reason="NOT_PERMITTED"):
    """The caller may not make this call."""


class TooManyBadTokens(
    Refusal, code=Code.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", retry_after_s=1.0
):
    """Too many tokens with a wrong signature came from this address."""
