"""Payments, the commands about them, and their rules. Pure: no I/O, no clock, no asyncio."""
