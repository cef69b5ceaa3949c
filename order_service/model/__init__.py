"""What the order service knows: products, carts, orders and their rules. Pure."""
