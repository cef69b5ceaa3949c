"""Breaches in the book of the order service, against the effects in the other services.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    BEFORE,
    CANCEL_B,
    COUPON_A,
    COUPON_B,
    HOUR_PASSES,
    PAID_A,
    PAY_A,
    PAY_D,
    PRODUCT,
    A,
    B,
    D,
    uid,
)
from tests.integration.audit.order_books import order_row

NOBODY = uid(99)
RUNNING_A = f"""
UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{PAY_A}';
"""
"""The attempt that paid A has done all its steps, and is under way."""
CANCELLING_B = f"""
UPDATE sagas SET state = 'RUNNING', steps = jsonb_set(steps, '{{1,state}}', '"BEGUN"')
WHERE saga_id = '{CANCEL_B}';
"""
"""The cancellation of B is under way."""
BREACHES: Final = f"""
a step that has not begun has deducted | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"PENDING"') WHERE saga_id = '{PAY_D}'
a step that was skipped has deducted | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"SKIPPED"') WHERE saga_id = '{PAY_D}'
a saga of an unknown plan has not begun to deduct | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET plan_version = 9, steps = '[]' WHERE saga_id = '{PAY_D}'
an attempt needs attention and deducted another amount | I3 | deduction
    order {D}: deduction with amount 250 and not 249
    UPDATE sagas SET state = 'NEEDS_ATTENTION', asked = asked || '{{"balance_minor": 249}}',
    steps = jsonb_set(steps, '{{1,state}}', '"UNKNOWN"') WHERE saga_id = '{PAY_D}'
an attempt under way deducted, and asked for the gateway | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt asks for none
    UPDATE sagas SET asked = asked || '{{"payment_key": "k"}}' WHERE saga_id = '{PAY_D}'
an attempt under way found another discount | I5 I3 I7 | redemption
    order {A}: redemption with amount 500 and not 499
    {RUNNING_A}
    UPDATE sagas SET facts = jsonb_set(facts, '{{discount_minor}}', '499')
an attempt under way leaves another amount for the gateway | I3 I7 | payment
    order {A}: payment with amount 1500 and not 1400
    {RUNNING_A}
    UPDATE sagas SET asked = jsonb_set(asked, '{{balance_minor}}', '3100')
    WHERE saga_id = '{PAY_A}'
an attempt under way asked for another coupon | I5 | redemption
    order {A}: redemption with coupon_id {COUPON_A} and not {COUPON_B}
    {RUNNING_A}
    UPDATE sagas SET asked = jsonb_set(asked, '{{coupon_id}}', '"{COUPON_B}"')
    WHERE saga_id = '{PAY_A}'
an attempt under way found another payment | I3 I7 | payment
    order {A}: payment with payment_id {PAID_A} and not {NOBODY}
    {RUNNING_A}
    UPDATE sagas SET facts = jsonb_set(facts, '{{payment_id}}', '"{NOBODY}"')
    WHERE saga_id = '{PAY_A}'
a cancellation under way is of another amount | I3 | deduction
    order {B}: deduction with amount 1000 and not 999
    {CANCELLING_B}
    UPDATE orders SET paid_by_balance_minor = 999, paid_by_gateway_minor = 701
    WHERE order_id = '{B}'
a cancellation has not begun, and the deduction is undone | I3 | deduction
    order {B}: the deduction of KRW 1,000 is undone, and no saga has begun to undo it
    {CANCELLING_B}
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"PENDING"')
    WHERE saga_id = '{CANCEL_B}'
a saga that does not move explains nothing | I3 I6 | deduction
    order {D}: deduction of KRW 250, and saga {PAY_D} does not move
    UPDATE sagas SET lease_until = '{BEFORE}' WHERE saga_id = '{PAY_D}'
a saga that waits too long explains nothing | I3 I6 | deduction
    order {D}: deduction of KRW 250, and saga {PAY_D} does not move
    {HOUR_PASSES}
a resolved saga left a deduction | I3 | deduction
    undoes it, or records that it stands
    UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'r', plan_version = 1,
    failure = '{{"reason": "r"}}' WHERE saga_id = '{PAY_D}';
    UPDATE orders SET state = 'PENDING' WHERE order_id = '{D}'
an order saved nothing by its coupon | I5 I6 | redemption
    order {A}: redemption of KRW 500, and this attempt paid nothing
    UPDATE orders SET coupon_id = NULL WHERE order_id = '{A}'
a coupon's saga is another user's | I5 | redemption
    saga {PAY_A} of ann: redemption of KRW 500, and no such saga
    UPDATE sagas SET user_id = 'eve' WHERE saga_id = '{PAY_A}'
a coupon's saga does not move | I5 | redemption
    order {A}: redemption of KRW 500, and saga {PAY_A} does not move
    {RUNNING_A}
    {HOUR_PASSES}
a payment's saga is another user's | I3 I7 | payment
    saga {PAY_A} of ann: payment of KRW 1,500, and no such saga
    UPDATE sagas SET user_id = 'eve' WHERE saga_id = '{PAY_A}'
a payment's saga does not move | I3 I7 | payment
    order {A}: payment of KRW 1,500, and saga {PAY_A} does not move
    {RUNNING_A}
    {HOUR_PASSES}
an attempt's saga is gone | I3 | deduction
    saga {PAY_D} of bob: deduction of KRW 250, and no such saga
    DELETE FROM sagas WHERE saga_id = '{PAY_D}'
a paid order's deduction is another amount | I3 | deduction
    order {A}: deduction with amount 3000 and not 2900
    UPDATE orders SET paid_by_balance_minor = 2900, discount_minor = 600 WHERE order_id = '{A}'
an order is paid without any effect | I3 I5 I6 I7 | payment
    order {NOBODY}: KRW 100 recorded, and there is no payment
    {order_row(NOBODY, "ann", 2, "PAID", (100, 300, 100), coupon=COUPON_B, payment=NOBODY)}
    UPDATE products SET sold = sold + 2 WHERE product_id = '{PRODUCT}'
an order has another payment's id | I7 | payment
    order {A}: payment with payment_id {PAID_A} and not {NOBODY}
    UPDATE orders SET payment_id = '{NOBODY}' WHERE order_id = '{A}'
"""
