"""Breaches in the book of the order service's products and orders.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    CANCEL_B,
    COUPON_B,
    PAY_B,
    PRODUCT,
    TOMORROW,
    A,
    B,
    C,
    D,
    E,
    answer,
    uid,
)
from tests.integration.audit.order_books import saga

NOBODY = uid(99)
BREACHES: Final = f"""
the total stock is raised | I4 | stock journal
    has 100 stocked with 40 added; before it 60, and the product has 101 stocked
    UPDATE products SET stocked = stocked + 1 WHERE product_id = '{PRODUCT}'
a stocking is not in the journal | I4 | stock journal
    product {PRODUCT}: 100 stocked, and not in the journal
    DELETE FROM stock_entries
the last stocking is gone from the journal | I4 I8 | stock journal
    has 60 stocked with 60 added; before it 0, and the product has 100 stocked
    DELETE FROM stock_entries WHERE kind = 'RESTOCKED'
the first stocking is gone from the journal | I4 I8 | stock journal
    journal entry RESTOCKED restock-1 of version 2 has 100 stocked with 40 added; before it 0
    DELETE FROM stock_entries WHERE kind = 'CREATED'
a stocking added another quantity | I4 | stock journal
    has 100 stocked with 41 added; before it 60
    UPDATE stock_entries SET quantity = 41 WHERE kind = 'RESTOCKED'
a stocking is of a product that does not exist | I4 | stock journal
    product {NOBODY}: is in the stock journal and does not exist
    UPDATE stock_entries SET product_id = '{NOBODY}' WHERE kind = 'RESTOCKED'
an order expired and its stock stays reserved | I4 | product
    product {PRODUCT}: 5 reserved, 1 in unpaid orders
    UPDATE orders SET state = 'EXPIRED', expire_time = update_time WHERE order_id = '{C}'
an order counts what its product did not reserve | I4 | product
    product {PRODUCT}: 5 reserved, 4 in unpaid orders
    UPDATE order_items SET quantity = 3 WHERE order_id = '{C}'
a line has another price than its product | I6 | lines of the order
    order {E}: 7 of product {PRODUCT} at 249 KRW, and the product costs 250 KRW
    UPDATE order_items SET unit_price_minor = 249 WHERE order_id = '{E}'
a product has another price than its lines | I6 | lines of the order
    order {A}: 20 of product {PRODUCT} at 250 KRW, and the product costs 251 KRW
    UPDATE products SET price_minor = 251
a line has no order | I6 | lines of the order
    order {E}: 7 of product {PRODUCT} at 250, and there is no such order
    DELETE FROM orders WHERE order_id = '{E}'
an order expired before its time | I6 | times of the order
    order {E} (EXPIRED): created
    UPDATE orders SET expire_time = '{TOMORROW}' WHERE order_id = '{E}'
an order changed before it was created | I6 | times of the order
    order {C} (PENDING): created
    UPDATE orders SET update_time = create_time - interval '1 second' WHERE order_id = '{C}'
a pending order kept its coupon | I6 | amounts of the order
    by gateway 0, coupon {COUPON_B}
    UPDATE orders SET coupon_id = '{COUPON_B}' WHERE order_id = '{C}'
a cancelled order was never paid | I6 | amounts of the order
    order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300
    DELETE FROM sagas WHERE saga_id IN ('{PAY_B}', '{CANCEL_B}')
an order's line is not in its answer | I8 | order and its answer
    CreateOrder create-{E} of ann: answered with order {E} over 1750
    UPDATE order_items SET quantity = 8 WHERE order_id = '{E}'
an order is answered with another expiry | I8 | order and its answer
    CreateOrder create-{C} of ann: answered with order {C}
    UPDATE orders SET expire_time = expire_time + interval '1 second' WHERE order_id = '{C}'
a restock is answered with another stock | I8 | stocking and its answer
    RESTOCKED by restock-1: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{stocked}}', '101')::text
    WHERE method = 'RestockProduct'
a restock is answered and not in the journal | I4 I8 | stocking and its answer
    RESTOCKED by restock-1: answered with product {PRODUCT}, and not in the stock journal
    DELETE FROM stock_entries WHERE kind = 'RESTOCKED'
a restock has no answer | I8 | stocking and its answer
    RESTOCKED by restock-1: product {PRODUCT} has the entry, and it is not answered
    DELETE FROM answers WHERE method = 'RestockProduct'
a product has another name than its answer | I8 | stocking and its answer
    CREATED by product-1: answered with
    UPDATE products SET name = 'another'
a reserved count is dropped | I4 | product
    product {PRODUCT}: 0 reserved, 5 in unpaid orders
    UPDATE products SET reserved = 0
a sold count is too high | I4 | product
    product {PRODUCT}: 21 sold, 20 in paid orders
    UPDATE products SET sold = sold + 1
more is sold than was stocked | I4 | product
    product {PRODUCT}: 24 stocked, 5 reserved, 20 sold
    ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold;
    UPDATE products SET stocked = 24 WHERE product_id = '{PRODUCT}'
a product is gone | I4 | product
    product {PRODUCT}: is ordered and does not exist
    DELETE FROM products
a paid order does not add up | I6 I5 | amounts of the order
    order {A} (PAID): lines 5000, subtotal 5000, discount 499
    ALTER TABLE orders DROP CONSTRAINT orders_paid_in_full;
    UPDATE orders SET discount_minor = 499 WHERE order_id = '{A}'
a cancelled order does not add up | I3 I6 | amounts of the order
    order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300, by balance 999
    UPDATE orders SET paid_by_balance_minor = 999 WHERE order_id = '{B}'
the lines are not the subtotal | I6 | amounts of the order
    order {E} (EXPIRED): lines 7, subtotal 1750
    UPDATE order_items SET unit_price_minor = 1 WHERE order_id = '{E}'
an order made an illegal transition | I4 I6 | transitions of the order
    order {D} is EXPIRED, with 0 payments completed, 1 under way
    UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{D}'
an order was paid twice | I3 I5 I6 I7 I8 | transitions of the order
    order {A} is PAID, with 2 payments completed
    {saga(NOBODY, A, "ann", "COMPLETED", "redeem_coupon DONE, complete_order DONE", 5_000)}
a cancelled order has a cancellation under way | I6 | transitions of the order
    order {B} is CANCELLED, with 1 payments completed, 0 under way, 0 cancellations
    UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{CANCEL_B}'
an order is answered and does not exist | I8 | order and its answer
    CreateOrder lost of ann: answered with order {NOBODY}, which does not exist
    {answer("CreateOrder", "ann", "lost", {"order_id": NOBODY})}
an order is answered with another amount | I8 | order and its answer
    CreateOrder create-{E} of ann: answered with order {E} over 1, created is {E} over 1750
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{subtotal_minor}}', '1')::text
    WHERE request_id = 'create-{E}'
an order has no answer | I8 | order and its answer
    CreateOrder create-{E} of ann: order {E} exists, and is not answered
    DELETE FROM answers WHERE request_id = 'create-{E}'
"""
