"""Breaches in the book of the order service's seats.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import uid
from tests.integration.audit.seat_books import SHOW, G, H, I

NOBODY = uid(99)
BREACHES: Final = f"""
a seat is sold twice | I4 I6 | seat and its order
    seat A-2 of product {SHOW} is SOLD by order {H}, and order {G} (PENDING) has it
    DROP INDEX order_seats_live_once;
    UPDATE order_seats SET label = 'A-2' WHERE order_id = '{G}';
    UPDATE order_seats SET live = false WHERE order_id = '{H}'
a seat is reserved by an order that has expired | I4 I6 | seat and its order
    seat A-1 of product {SHOW} is RESERVED by order {G}, and order {G} (EXPIRED) has it
    UPDATE orders SET state = 'EXPIRED', expire_time = update_time WHERE order_id = '{G}'
a reserved seat is free | I4 | seat and its order
    seat A-1 of product {SHOW} is FREE, and order {G} (PENDING) has it
    UPDATE seats SET state = 'FREE', order_id = NULL WHERE label = 'A-1'
a free seat is sold to nobody | I4 | seat and its order
    seat A-3 of product {SHOW} is SOLD by order {I}, and no order has it
    UPDATE seats SET state = 'SOLD', order_id = '{I}' WHERE label = 'A-3'
a seat that is ordered does not exist | I4 | seat and its order
    seat A-1 of product {SHOW} is missing, and order {G} (PENDING) has it
    DELETE FROM seats WHERE label = 'A-1'
a product counts a seat too few | I4 | seats of the product
    product {SHOW}: 2 seats, and 3 exist, 2 seats of 3 stocked
    ALTER TABLE products DROP CONSTRAINT products_seats_all_or_none;
    UPDATE products SET seats = 2 WHERE product_id = '{SHOW}'
a product counts other seats as sold | I4 | seats of the product
    product {SHOW}: 1 reserved and 1 sold, of its seats 0 and 1
    UPDATE seats SET state = 'FREE', order_id = NULL WHERE label = 'A-1'
a seat changed and its product did not | I4 | seats of the product
    product {SHOW}: version 9, of its seats 10
    UPDATE seats SET version = 10 WHERE label = 'A-1'
a product changed without its seats | I4 | seats of the product
    product {SHOW}: version 9, last written with seats at 8
    ALTER TABLE products DROP CONSTRAINT products_seats_version;
    UPDATE products SET seats_version = 8 WHERE product_id = '{SHOW}'
seats are of a product that does not exist | I4 | seats of the product
    product {NOBODY}: has seats and does not exist
    UPDATE seats SET product_id = '{NOBODY}'
a line names a seat too few | I6 | seats of the line
    order {G} (PENDING): 1 of product {SHOW}, seated, with 0 seats named and 0 had
    DELETE FROM order_seats WHERE order_id = '{G}'
a line of a seated product names none | I6 | seats of the line
    order {G} (PENDING): 1 of product {SHOW}, with 1 seats named and 1 had
    UPDATE order_items SET seated = false WHERE order_id = '{G}'
an expired order has a seat | I4 I6 | seats of the line
    order {I} (EXPIRED): 1 of product {SHOW}, seated, with 1 seats named and 1 had
    UPDATE order_seats SET live = true WHERE order_id = '{I}'
an order that ended has its seats | I6 | seats of the line
    order {G} (CANCELLED): 1 of product {SHOW}, seated, with 1 seats named and 1 had
    UPDATE orders SET state = 'CANCELLED' WHERE order_id = '{G}'
lines have seats of a product without | I6 | seats of the line
    order {G} (PENDING): 1 of product {SHOW}, seated, with 1 seats named and 1 had
    ALTER TABLE products DROP CONSTRAINT products_seats_all_or_none;
    UPDATE products SET seats = 0
a seat was added by another stocking | I4 | seats of the stocking
    product {SHOW}: 0 seats stocked by another, and 1 exist
    UPDATE seats SET request_id = 'another' WHERE label = 'A-1'
a stocking added another number of seats | I4 | seats of the stocking
    product {SHOW}: 2 seats stocked by seats-1, and 3 exist
    UPDATE stock_entries SET quantity = 2 WHERE kind = 'SEATED'
an order is answered with another seat | I8 | order and its answer
    CreateOrder create-{I} of ann: answered with order {I}
    UPDATE order_seats SET label = 'A-9' WHERE order_id = '{I}'
seats are answered with another stock | I8 | stocking and its answer
    SEATED by seats-1: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{stocked}}', '4')::text
    WHERE method = 'AddSeats'
"""
