"""First-come coupons: campaigns, who was first, and which order a coupon is used for."""
