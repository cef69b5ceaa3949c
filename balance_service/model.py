"""Accounts and the rules of money in them. Pure: no I/O, no clock, nothing asynchronous.

An account is (user, currency). Every change of it is a ledger entry; its version is the entry's
sequence, so the ledger alone rebuilds every balance there has ever been.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from balance_service.errors import AccountNotFound, BalanceLimitExceeded, InsufficientFunds
from common.currencies import require_listed
from common.errors import InvalidField
from common.identity.origin import Origin
from common.money import BALANCE_MAX, INT64_MAX, Money
from common.request_key import RequestKey, digest_of

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


class AccountId(NamedTuple):
    """A user's money in one currency."""

    user_id: str
    currency_code: str


class AccountAt(NamedTuple):
    """An account as of a time: as its last entry up to then left it."""

    user_id: str
    currency_code: str
    time: datetime

    @property
    def account_id(self) -> AccountId:
        return AccountId(self.user_id, self.currency_code)


class Kind(enum.StrEnum):
    """Why a balance changed."""

    CHARGE = "CHARGE"
    DEDUCT = "DEDUCT"
    REFUND = "REFUND"


@dataclass(frozen=True, slots=True)
class ChargeBalance:
    """Add to the account, opening it if need be."""

    user_id: str
    amount: Money
    request_id: str

    @property
    def account_id(self) -> AccountId:
        return AccountId(self.user_id, self.amount.currency_code)

    @property
    def key(self) -> RequestKey:
        return RequestKey("ChargeBalance", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.amount.currency_code, self.amount.amount_minor)


@dataclass(frozen=True, slots=True)
class DeductBalance:
    """Take from the account, if it holds enough."""

    user_id: str
    amount: Money
    request_id: str
    order_id: str | None
    origin: Origin = Origin.UNVERIFIED
    """Not part of the request's content."""

    @property
    def account_id(self) -> AccountId:
        return AccountId(self.user_id, self.amount.currency_code)

    @property
    def key(self) -> RequestKey:
        return deduct_key(self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.amount.currency_code, self.amount.amount_minor, self.order_id)


@dataclass(frozen=True, slots=True)
class RefundDeduction:
    """Put a deduction back, once, or keep it from ever happening."""

    user_id: str
    deduct_request_id: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("RefundDeduction", self.user_id, self.request_id)

    @property
    def deduct_key(self) -> RequestKey:
        return deduct_key(self.user_id, self.deduct_request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.deduct_request_id)


Command = ChargeBalance | DeductBalance | RefundDeduction


def deduct_key(user_id: str, request_id: str) -> RequestKey:
    """The key of a deduction's record, which its refund replaces by a tombstone."""
    return RequestKey("DeductBalance", user_id, request_id)


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of one account, never changed or deleted.

    ``amount_minor`` is signed; ``sequence`` has no gaps.
    """

    entry_id: str
    account_id: AccountId
    sequence: int
    kind: Kind
    amount_minor: int
    balance_after_minor: int
    request_id: str
    order_id: str | None
    refund_of: str | None
    """A refund's deduct_request_id."""
    create_time: datetime
    origin: Origin | None = None
    """A deduction's; None if an earlier release stored it."""

    @property
    def user_id(self) -> str:
        return self.account_id.user_id

    @property
    def currency_code(self) -> str:
        return self.account_id.currency_code


@dataclass(slots=True)
class Account:
    """A balance, as it was loaded and as this batch changes it."""

    id: AccountId
    available_minor: int = 0
    version: int = 0
    update_time: datetime = BEGINNING
    charged_minor: int = 0
    """The sum of all charges up to ``charged_at_version``. What is available and what refunds may
    still put back add up to it: while it fits in 64 bits, every later balance does."""
    charged_at_version: int = 0
    """Below the version after a write by a release that did not count the charges."""
    loaded_version: int = field(init=False)
    entries: list[Entry] = field(init=False, default_factory=list)
    """The entries of this batch, to be saved with the account."""

    def __post_init__(self) -> None:
        self.loaded_version = self.version

    @property
    def exists(self) -> bool:
        """An account begins with its first entry; before that its row is only a place to wait."""
        return self.version > 0

    @property
    def charges_counted(self) -> bool:
        """Whether ``charged_minor`` has every charge."""
        return self.charged_at_version == self.version

    def count_charges(self, minor: int) -> None:
        """Add the charges that were not counted, up to the version."""
        # A release that did not count them may have charged more than the limit.
        self.charged_minor = min(self.charged_minor + minor, INT64_MAX)
        self.charged_at_version = self.version

    def charge(self, command: ChargeBalance, entry_id: str, now: datetime) -> Entry:
        """Add the amount; the charges must be counted.

        Raises BalanceLimitExceeded, or InvalidField if it would open an account in a currency that
        is not listed.

        A charge is the only change that can make a later refund too large, so it is the only one
        that the limits apply to.
        """
        assert self.charges_counted, "the sum of the charges is older than the account"
        if not self.exists:
            require_listed(self.id.currency_code, "amount.currency_code")
        amount = command.amount.amount_minor
        if self.available_minor + amount > BALANCE_MAX or self.charged_minor + amount > INT64_MAX:
            raise BalanceLimitExceeded(user_id=self.id.user_id, currency_code=self.id.currency_code)
        self.charged_minor += amount
        return self._enter(entry_id, Kind.CHARGE, amount, now, command.request_id)

    def deduct(self, command: DeductBalance, entry_id: str, now: datetime) -> Entry:
        """Take the amount. Raises InsufficientFunds."""
        amount = command.amount.amount_minor
        if amount > self.available_minor:
            raise InsufficientFunds(
                user_id=self.id.user_id,
                currency_code=self.id.currency_code,
                available=self.available_minor,
                asked=amount,
            )
        return self._enter(
            entry_id,
            Kind.DEDUCT,
            -amount,
            now,
            command.request_id,
            order_id=command.order_id,
            origin=command.origin,
        )

    def refund(
        self, command: RefundDeduction, deduction: Entry, entry_id: str, now: datetime
    ) -> Entry:
        """Put the whole deduction back. Never refused, not even above the limit for charges.

        The balance stays within the sum of the charges, which ``charge`` limits.
        """
        assert deduction.account_id == self.id
        return self._enter(
            entry_id,
            Kind.REFUND,
            -deduction.amount_minor,
            now,
            command.request_id,
            order_id=deduction.order_id,
            refund_of=deduction.request_id,
        )

    def _enter(
        self,
        entry_id: str,
        kind: Kind,
        amount_minor: int,
        now: datetime,
        request_id: str,
        *,
        order_id: str | None = None,
        refund_of: str | None = None,
        origin: Origin | None = None,
    ) -> Entry:
        self.available_minor += amount_minor
        if self.charges_counted:
            self.charged_at_version += 1
        self.version += 1
        # The database's clock may be set back; an account's history is not.
        self.update_time = max(self.update_time, now)
        entry = Entry(
            entry_id,
            self.id,
            self.version,
            kind,
            amount_minor,
            self.available_minor,
            request_id,
            order_id,
            refund_of,
            self.update_time,
            origin,
        )
        self.entries.append(entry)
        return entry


@dataclass(frozen=True, slots=True)
class PastAccount:
    """What the ledger says of an account as of a time."""

    account: Account | None
    """As its last entry up to the time left it, without its charges; None before its first one."""
    present_time: datetime
    """The database's clock, or the account's last entry if that is later."""

    def require(self, asked: AccountAt) -> Account:
        """The account. Raises AccountNotFound, or InvalidField for a time in the future."""
        if asked.time > self.present_time:
            raise InvalidField("at_time", "must not be in the future")
        if self.account is None:
            raise account_not_found(asked.account_id)
        return self.account


def account_not_found(account_id: AccountId) -> AccountNotFound:
    return AccountNotFound(user_id=account_id.user_id, currency_code=account_id.currency_code)
