"""The rules of campaigns and coupons. Pure: no I/O, no clock, nothing asynchronous."""
