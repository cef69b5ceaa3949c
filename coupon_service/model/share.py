"""Shares: the rows over which a campaign's quantity is split, so that replicas do not meet on one.

Share ``k`` of ``n`` has the numbers from its ``first_number`` on, as many as its quantity. A coupon
is never returned, so a share that was empty once stays empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from coupon_service.errors import CouponSoldOut
from coupon_service.model.campaign import Campaign
from coupon_service.model.coupon import IssueCoupon


@dataclass(frozen=True, slots=True)
class IssueFromShare(IssueCoupon):
    """Issue one coupon of a campaign with shares, from ``share`` if it has any left."""

    share: int


@dataclass(slots=True)
class Share:
    """A part of a campaign's quantity, with the numbers that belong to it."""

    campaign_id: str
    share: int
    """From 0 on."""
    first_number: int
    quantity: int
    """0 if the campaign has fewer coupons than shares."""
    issued: int

    @property
    def left(self) -> int:
        return self.quantity - self.issued

    def take_number(self) -> int:
        """Count one more coupon and return its number. There must be one left."""
        assert self.left > 0
        number = self.first_number + self.issued
        self.issued += 1
        return number


def split(campaign: Campaign) -> Iterator[Share]:
    """The shares of a new campaign, none if it has only one.

    Their quantities differ by 1 at most, and the larger come first.
    """
    if campaign.shares == 1:
        return
    quantity, larger = divmod(campaign.quantity, campaign.shares)
    first_number = 1
    for share in range(campaign.shares):
        of_share = quantity + (share < larger)
        yield Share(campaign.campaign_id, share, first_number, of_share, issued=0)
        first_number += of_share


def preferred_share(replica: str, campaign_id: str, shares: int) -> int:
    """The share that a replica draws from first: the same each time, others for other replicas."""
    hashed = hashlib.blake2b(f"{replica} {campaign_id}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed) % shares


@dataclass(slots=True)
class Drawn:
    """A campaign with shares, and those of them that the transaction has locked."""

    campaign: Campaign
    shares: list[Share]
    sold_out: bool
    """Whether every share was seen to be empty, as committed."""

    @property
    def left(self) -> int:
        return sum(share.left for share in self.shares)

    def take_number(self, user_id: str) -> int | None:
        """A number of the first locked share that has one; None: ask again, with other shares.

        Raises CampaignNotOpen or CouponSoldOut.
        """
        self.campaign.check_open()
        for share in self.shares:
            if share.left:
                return share.take_number()
        if self.sold_out:
            raise CouponSoldOut(
                campaign_id=self.campaign.campaign_id,
                user_id=user_id,
                quantity=self.campaign.quantity,
            )
        return None
