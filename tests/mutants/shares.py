"""Planted bugs of campaigns with shares."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_MODEL: Final = "tests/unit/coupon/test_shares.py::"
_USE: Final = "tests/integration/coupon/test_shares.py::"
_RACES: Final = "tests/concurrency/coupon/test_shares.py::"
_QUANTITY: Final = f"{_RACES}test_each_guard_alone_issues_exactly_the_quantity_of_shares"
_STRATEGIES: Final = "tests/integration/services/test_strategies.py::"
_BREACHES: Final = "tests/integration/audit/test_breaches.py::"
_STORE: Final = "coupon_service/store/share.py"

SHARES: Final = (
    Mutant(
        "share-without-row-lock",
        "coupons are issued without the lock on a share's row",
        file=_STORE,
        old="        .with_for_update("
        "of=campaign_shares, key_share=True, skip_locked=skip_locked)\n",
        new="",
        tests=(
            f"{_QUANTITY}[row lock-no-redis]",
            f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[IssueFromShare]",
        ),
    ),
    Mutant(
        "sold-out-behind-a-lock",
        "a campaign is sold out when every share that has coupons is locked",
        file=_STORE,
        old="sa.case((next_.c.share.is_(None), with_any == 0), else_=False)",
        new="next_.c.share.is_(None)",
        tests=(f"{_USE}test_sold_out_is_said_only_when_all_shares_are_seen_to_be_empty",),
    ),
    Mutant(
        "draw-from-an-empty-share",
        "a replica whose share is empty does not look at the others",
        file=_STORE,
        old=".where(of_campaign, _left, position > _asked.c.after)",
        new=".where(of_campaign, position > _asked.c.after)",
        tests=(f"{_USE}test_every_coupon_of_every_share_is_issued_and_no_more",),
    ),
    Mutant(
        "shares-with-the-same-numbers",
        "two shares have a number in common",
        file="coupon_service/model/share.py",
        old="        first_number += of_share\n",
        new="        first_number += quantity\n",
        tests=(f"{_MODEL}test_shares_have_all_numbers_once_and_differ_by_one",),
    ),
    Mutant(
        "remainder-in-no-share",
        "what does not divide by the number of shares is in none",
        file="coupon_service/model/share.py",
        old="of_share = quantity + (share < larger)",
        new="of_share = quantity",
        tests=(f"{_MODEL}test_shares_have_all_numbers_once_and_differ_by_one",),
    ),
    Mutant(
        "share-issues-one-too-many",
        "a share issues one coupon more than its quantity",
        file="coupon_service/model/share.py",
        old="return self.quantity - self.issued\n",
        new="return self.quantity - self.issued + 1\n",
        tests=(f"{_MODEL}test_numbers_come_from_the_shares_that_have_any_left",),
    ),
    Mutant(
        "unsorted-coupons-of-shares",
        "coupons of shares are inserted in the order of arrival",
        file="coupon_service/store/coupon.py",
        old="_ADD_SORTED: Final = insert_from(coupons, _issued, Claim._fields)",
        new="_ADD_SORTED: Final = insert_from(coupons, _issued)",
        tests=(f"{_RACES}test_the_same_users_in_opposite_orders_do_not_deadlock",),
    ),
    Mutant(
        "held-coupon-holds-a-share",
        "a coupon that is not committed delays all commands of the same share",
        file="coupon_service/locking.py",
        old="        new_row=NEW_COUPON,\n",
        new="",
        tests=(f"{_USE}test_coupon_that_another_share_is_adding_delays_its_user_only",),
    ),
    Mutant(
        "earlier-release-issues-beside-shares",
        "the database lets a release without shares issue from the campaign's row",
        file="coupon_service/migrations/0002_shares.py",
        old="    CHECK (shares = 1 OR issued = 0) NOT VALID;",
        new="    CHECK (shares >= 1 OR issued = 0) NOT VALID;",
        tests=(
            f"{_USE}test_an_earlier_release_cannot_issue_from_the_row_of_a_campaign_with_shares",
        ),
    ),
    Mutant(
        "issued-of-the-row",
        "a campaign with shares shows what its own row counts",
        file="coupon_service/store/campaign.py",
        old="sa.case((campaigns.c.shares > 1, _in_shares), else_=campaigns.c.issued)",
        new="sa.case((campaigns.c.shares > 64, _in_shares), else_=campaigns.c.issued)",
        tests=(f"{_USE}test_issued_of_shares_is_their_sum_and_coupons_are_as_others",),
    ),
    Mutant(
        "shares-not-compared",
        "a request_id with another number of shares gets the first campaign",
        file="coupon_service/model/campaign.py",
        old="*((self.shares,) if self.shares > 1 else ()),",
        new="*((self.shares,) if self.shares > 64 else ()),",
        tests=(f"{_USE}test_shares_are_shown_and_part_of_the_request",),
    ),
    Mutant(
        "audit-passes-over-numbers-of-shares",
        "the audit does not see that a share has passed over a number",
        file="deploy/audit/coupon_shares.py",
        old="\n    OR i.lowest <> s.first_number OR i.highest <> s.first_number + s.issued - 1",
        new="",
        tests=(f"{_BREACHES}test_audit_reports_breach",),
    ),
)
