"""Products, carts and orders, and the sagas that pay orders and cancel paid ones."""
