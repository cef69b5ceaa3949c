"""Planted bugs of orders, products and carts."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_ORDERS: Final = "tests/integration/order/test_orders.py::"
_MODEL: Final = "tests/unit/order/test_order.py::"
_STOCK: Final = "tests/concurrency/order/test_stock.py::"
_EXPIRY: Final = "tests/integration/order/test_expiry.py::"
_CONFLICTS: Final = "tests/integration/contract/test_conflicts.py::"
_STRATEGIES: Final = "tests/integration/services/test_strategies.py::"
_JOURNAL: Final = "tests/integration/order/test_saga_journal.py::"
_CARTS: Final = "tests/integration/order/test_carts.py::"
_BULKHEADS: Final = "tests/integration/order/test_bulkheads.py::"
_SWEEPS: Final = "tests/integration/order/test_sweeps.py::"
_CACHE: Final = "tests/unit/order/test_product_cache.py::"
_BAD_INPUT: Final = "tests/integration/contract/test_bad_input.py::"

ORDER: Final = (
    Mutant(
        "order-in-two-currencies",
        "an order adds up prices of two currencies",
        file="order_service/model/order.py",
        old="if product.price.currency_code != currency_code:",
        new="if not product.price.currency_code:",
        tests=(f"{_CONFLICTS}test_requests_that_the_data_forbids_are_refused",),
    ),
    Mutant(
        "one-item-too-many",
        "an order may take one item more than is free",
        file="order_service/use_cases/order_decider.py",
        old="(free := batch.products[item.product_id].free) < item.quantity",
        new="(free := batch.products[item.product_id].free) + 1 < item.quantity",
        tests=(f"{_ORDERS}test_every_product_that_is_short_is_named_and_nothing_reserved",),
    ),
    Mutant(
        "no-release-at-expiry",
        "an order that expires keeps its stock reserved",
        file="order_service/model/order.py",
        old="(OrderState.PENDING, OrderState.EXPIRED): StockMove.RELEASE,",
        new="(OrderState.PENDING, OrderState.EXPIRED): None,",
        tests=(f"{_EXPIRY}test_an_overdue_order_expires_once_and_gives_its_stock_back",),
    ),
    Mutant(
        "no-release-at-cancellation",
        "a cancelled order keeps its stock reserved",
        file="order_service/model/order.py",
        old="(OrderState.PENDING, OrderState.CANCELLED): StockMove.RELEASE,",
        new="(OrderState.PENDING, OrderState.CANCELLED): None,",
        tests=(f"{_ORDERS}test_a_pending_order_is_cancelled_once",),
    ),
    Mutant(
        "sold-and-still-reserved",
        "stock that is sold stays reserved too",
        file="order_service/model/product.py",
        old="(now, reserved=self.reserved - quantity, sold=self.sold + quantity)",
        new="(now, sold=self.sold + quantity)",
        tests=(f"{_MODEL}TestStock",),
    ),
    Mutant(
        "expiry-of-a-paying-order",
        "an order expires while it is being paid",
        file="order_service/model/order.py",
        old="return self.state is OrderState.PENDING and now >= self.expire_time",
        new="return self.state in {OrderState.PENDING, OrderState.PAYING}"
        " and now >= self.expire_time",
        tests=(f"{_MODEL}test_only_legal_transitions_can_be_made",),
    ),
    Mutant(
        "payable-after-expiry",
        "an order whose time has passed can be paid",
        file="order_service/model/order.py",
        old="if self.state is not OrderState.PENDING or now >= self.expire_time:",
        new="if self.state is not OrderState.PENDING:",
        tests=(f"{_MODEL}test_a_refused_transition_has_its_own_refusal",),
    ),
    Mutant(
        "paid-less-than-due",
        "an order counts as paid whatever was paid for it",
        file="order_service/model/order.py",
        old="        assert paid_minor == self.subtotal_minor - discount_minor,"
        ' "paid is not what was due"\n',
        new="",
        tests=(f"{_MODEL}test_what_is_paid_is_what_is_due",),
    ),
    Mutant(
        "subtotal-without-quantities",
        "an order's subtotal is the sum of the prices",
        file="order_service/model/order.py",
        old="subtotal_minor = sum(item.amount_minor for item in items)",
        new="subtotal_minor = sum(item.unit_price_minor for item in items)",
        tests=(f"{_ORDERS}test_an_order_reserves_its_stock_at_the_current_prices",),
    ),
    Mutant(
        "orders-above-the-largest-amount",
        "an order's sum is not limited",
        file="order_service/model/order.py",
        old="if subtotal_minor > AMOUNT_MAX:",
        new="if subtotal_minor > 1_000 * AMOUNT_MAX:",
        tests=(f"{_CONFLICTS}test_requests_that_the_data_forbids_are_refused",),
    ),
    Mutant(
        "order-without-product-locks",
        "the stock is checked without the lock on the products' rows",
        file="order_service/store/product.py",
        old="_PRODUCTS.lock(connection, product_ids, wait_for_locks=wait_for_locks, also=also)",
        new="_PRODUCTS.read(connection, product_ids)",
        tests=(
            f"{_STOCK}test_each_guard_alone_keeps_the_stock_right[no-redis-lock]",
            f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[CreateOrder]",
        ),
    ),
    Mutant(
        "stock-of-any-version",
        "the stock is written although the product has changed since it was read",
        file="order_service/store/product.py",
        old="        products.c.version == _changed.c.loaded_version,\n",
        new="",
        tests=(f"{_STOCK}test_each_guard_alone_keeps_the_stock_right",),
    ),
    Mutant(
        "database-sells-too-much",
        "the database accepts more reserved than was stocked",
        file="order_service/migrations/0001_products_orders_carts.py",
        old="CHECK (reserved + sold <= stocked)",
        new="CHECK (sold <= stocked)",
        tests=(f"{_STOCK}test_each_guard_alone_keeps_the_stock_right",),
    ),
    Mutant(
        "two-live-sagas-of-an-order",
        "the database accepts two live sagas of one order",
        file="order_service/migrations/0002_sagas.py",
        old="CREATE UNIQUE INDEX sagas_one_live_per_order ON sagas (order_id)",
        new="CREATE UNIQUE INDEX sagas_one_live_per_order ON sagas (order_id, saga_id)",
        tests=(f"{_JOURNAL}test_an_order_has_one_live_saga",),
    ),
    Mutant(
        "move-from-any-state",
        "an order is moved although its state has changed since it was read",
        file="order_service/store/order.py",
        old="        orders.c.version == _changed.c.loaded_version,\n"
        "        orders.c.state == _changed.c.loaded_state,\n",
        new="",
        tests=(f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[CancelOrder]",),
    ),
    Mutant(
        "orders-of-other-users",
        "a user can pay and cancel the orders of others",
        file="order_service/use_cases/order_batch.py",
        old="if order is None or order.user_id != command.user_id:",
        new="if order is None:",
        tests=(f"{_BAD_INPUT}test_user_without_anything_is_refused",),
    ),
    Mutant(
        "cart-of-any-version",
        "a cart is changed whichever version the caller has seen",
        file="order_service/store/cart.py",
        old="where=sa.or_(_expected.is_(None), carts.c.version == _expected),",
        new="where=sa.or_(_expected.is_(None), carts.c.version >= _expected),",
        tests=(f"{_CARTS}test_a_change_of_another_version_is_refused",),
    ),
    Mutant(
        "reply-with-a-later-cart",
        "the reply to a change that changes nothing shows what another replica wrote after it",
        file="order_service/use_cases/cart.py",
        old="                if command.is_done_in(cart):\n",
        new="                if True:\n",
        tests=(f"{_CARTS}test_a_reply_has_the_change_though_another_tab_changes_the_cart",),
    ),
    Mutant(
        "cart-without-turns",
        "all changes of one cart ask for connections at once",
        file="order_service/use_cases/cart.py",
        old='Bulkhead("cart", 1, waiting_max=WAITING_MAX)',
        new='Bulkhead("cart", 1_000)',
        tests=(f"{_BULKHEADS}test_a_held_cart_delays_only_its_own_changes",),
    ),
    Mutant(
        "carts-take-every-connection",
        "transactions of carts may have all connections of the lanes",
        file="common/db/bulkheads.py",
        old='calls=Bulkhead("calls", max(1, lanes - 1))',
        new='calls=Bulkhead("calls", 1_000)',
        tests=(f"{_BULKHEADS}test_carts_that_wait_leave_a_connection_to_orders",),
    ),
    Mutant(
        "stuck-rows-take-every-turn",
        "rows that are held for long may have all connections that wait for rows",
        file="common/db/bulkheads.py",
        old='stuck=Bulkhead("stuck", max(1, waiting - 1), refuses=False)',
        new='stuck=Bulkhead("stuck", 1_000, refuses=False)',
        tests=(f"{_BULKHEADS}test_stuck_rows_leave_a_turn_to_a_row_held_for_a_moment",),
    ),
    Mutant(
        "sweep-ends-at-one-order",
        "an order that the database refuses ends the sweep",
        file="order_service/use_cases/expiry.py",
        old="        except Exception as error:  # noqa",
        new="        except ValueError as error:  # noqa",
        tests=(f"{_SWEEPS}test_orders_that_cannot_expire_stop_no_other",),
    ),
    Mutant(
        "products-older-than-allowed",
        "the age of a cached product counts from the end of its read",
        file="order_service/use_cases/product_cache.py",
        old="self._keep(asked, _Kept(now_s, products))",
        new="self._keep(asked, _Kept(self._clock(), products))",
        tests=(f"{_CACHE}test_the_age_counts_from_the_begin_of_the_read",),
    ),
)
