"""Coupons: campaigns, the issue of their coupons, and the redemption of coupons by orders."""
