"""Products, carts, orders and sagas, and their rules. Pure: no I/O, no clock, no asyncio."""
