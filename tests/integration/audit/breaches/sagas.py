"""Breaches in the book of the order service's sagas and answers.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    BEFORE,
    CANCEL_B,
    COUPON_B,
    HOUR_PASSES,
    PAID_A,
    PAY_A,
    PAY_C,
    PAY_D,
    TOMORROW,
    A,
    B,
    C,
    D,
    answer,
    uid,
)
from tests.integration.audit.order_books import saga

NOBODY = uid(99)
RESOLVED_C = {
    "saga_id": PAY_C,
    "order_id": C,
    "kind": "PAY_ORDER",
    "resolution_reason": "gave it back",
}
BREACHES: Final = f"""
an attempt began after the order's expiry | I6 | attempt after the order's expiry
    saga {PAY_C} began to pay it at
    UPDATE sagas SET create_time = '{TOMORROW}', update_time = '{TOMORROW}'
    WHERE saga_id = '{PAY_C}'
a saga is another user's than its order | I6 | ended saga
    saga {PAY_C} (COMPENSATED) of order {C}: there is no such order
    UPDATE orders SET user_id = 'eve' WHERE order_id = '{C}'
a resolved saga left a step begun | I6 | ended saga
    saga {PAY_C} (RESOLVED) of order {C}: steps redeem_coupon SKIPPED, deduct_balance DONE
    UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'r',
    steps = jsonb_set(steps, '{{1,state}}', '"DONE"') WHERE saga_id = '{PAY_C}'
a saga found another discount than its order has | I6 | saga and its order
    saga {PAY_A} (PAY_ORDER) of order {A}: asked
    UPDATE sagas SET facts = jsonb_set(facts, '{{discount_minor}}', '499')
    WHERE saga_id = '{PAY_A}'
an order has another coupon than its saga | I6 | saga and its order
    coupon {COUPON_B}, payment {PAID_A}
    UPDATE orders SET coupon_id = '{COUPON_B}' WHERE order_id = '{A}'
a cancellation gives back another amount | I6 | saga and its order
    saga {CANCEL_B} (CANCEL_ORDER) of order {B}: asked
    UPDATE sagas SET asked = jsonb_set(asked, '{{balance_minor}}', '999')
    WHERE saga_id = '{CANCEL_B}'
a cancellation undoes another attempt | I6 | saga and its order
    saga {CANCEL_B} (CANCEL_ORDER) of order {B}: asked
    UPDATE sagas SET asked = jsonb_set(asked, '{{pay_saga_id}}', '"{PAY_A}"')
    WHERE saga_id = '{CANCEL_B}'
a step ended before it began | I6 | times of the saga
    saga {PAY_A} of order {A}: created
    UPDATE sagas SET steps = jsonb_set(steps, '{{0,end_time}}', '"2000-01-01T00:00:00Z"')
    WHERE saga_id = '{PAY_A}'
the heartbeat is gone | I3 I5 I6 I7 | heartbeat
    the heartbeat is gone: nothing can be overdue
    DELETE FROM heartbeat
a pending order is not expired | I6 | overdue
    order {C} is PENDING, to be paid until
    UPDATE orders SET expire_time = create_time + interval '1 second' WHERE order_id = '{C}'
a saga is not moved | I6 I3 | overdue
    saga {PAY_D} of order {D}, begun
    UPDATE sagas SET lease_until = '{BEFORE}' WHERE saga_id = '{PAY_D}'
the service runs and nothing moves | I6 | overdue
    is RUNNING and due since
    {HOUR_PASSES}
an attempt that is refused has no saga | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: refused, and its saga does not exist
    DELETE FROM sagas WHERE saga_id = '{PAY_C}'
an attempt is refused for another reason | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: refused, and its saga {PAY_C} is COMPENSATED
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{reason}}', '"x"')::text
    WHERE request_id = 'pay-{PAY_C}'
an order has other amounts than its answer | I8 | answer about paying
    by balance 3000, by gateway 1500, and order {A} has 500, 2999, 1501
    UPDATE orders SET paid_by_balance_minor = 2999, paid_by_gateway_minor = 1501
    WHERE order_id = '{A}'
an order's cancellation is answered and it is paid | I8 | answer about cancelling
    CancelOrder cancel-b of bob: answered, and order {B} is PAID
    UPDATE orders SET state = 'PAID' WHERE order_id = '{B}'
a closed saga has another reason than its answer | I8 | answer about a saga
    ResolveSaga close-1: answered about saga {PAY_C} of order {C}, and it is COMPENSATED
    {answer("ResolveSaga", "", "close-1", RESOLVED_C)}
an answer is about a saga that does not exist | I8 | answer about a saga
    RetrySaga retry-1: answered about saga {PAY_C} of order {C}, and there is no such saga
    {answer("RetrySaga", "", "retry-1", RESOLVED_C)}
    DELETE FROM sagas WHERE saga_id = '{PAY_C}'
an ended saga left a step begun | I6 | ended saga
    saga {PAY_C} (COMPENSATED) of order {C}: steps redeem_coupon SKIPPED, deduct_balance BEGUN
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"BEGUN"') WHERE saga_id = '{PAY_C}'
a completed saga left a step pending, which is not stored | I6 | ended saga
    deduct_balance PENDING
    UPDATE sagas SET steps = steps #- '{{1,state}}' WHERE saga_id = '{PAY_A}'
a saga has no order | I6 | ended saga
    there is no such order
    {saga(NOBODY, uid(98), "ann", "RUNNING", "complete_order PENDING", 1)}
a payment is answered with other amounts | I8 | answer about paying
    by balance 1, by gateway 1500, and order {A} has 500, 3000, 1500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{paid_by_balance_minor}}', '1')::text
    WHERE request_id = 'pay-{PAY_A}'
an order was paid after its expiry | I6 | attempt after the order's expiry
    saga {PAY_A} began to pay it at
    UPDATE orders SET expire_time = create_time WHERE order_id = '{A}'
a payment is answered and is under way | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_D} of bob: answered, and its saga {PAY_D} is RUNNING
    {answer("PayOrder", "bob", f"pay-{PAY_D}", {"order_id": D})}
a refused attempt is not answered | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: not answered, and its saga {PAY_C} is COMPENSATED
    DELETE FROM answers WHERE request_id = 'pay-{PAY_C}'
a cancellation is answered and did not happen | I8 | answer about cancelling
    CancelOrder lost of ann: answered, and order {A} is PAID
    {answer("CancelOrder", "ann", "lost", {"order_id": A})}
"""
