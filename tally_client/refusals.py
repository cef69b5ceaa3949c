"""A class for each reason of the contract; the tree is drawn in ``tally_client.errors``."""

from __future__ import annotations

from tally_client.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


class InvalidField(InvalidArgument, reason="INVALID_FIELD"):
    """Fields of the request are not valid: ``fields`` names them."""


class CurrencyMismatch(InvalidArgument, reason="CURRENCY_MISMATCH"):
    """Amounts of different currencies cannot be combined."""


class RequestIdReused(InvalidArgument, reason="REQUEST_ID_REUSED"):
    """This request_id was used before with other content."""


class InvalidPageToken(InvalidArgument, reason="INVALID_PAGE_TOKEN"):
    """The page_token was not returned by this list, or belongs to other filters."""


class AmountExceedsDue(InvalidArgument, reason="AMOUNT_EXCEEDS_DUE"):
    """balance_amount is more than the order's amount due."""


class AccountNotFound(NotFound, reason="ACCOUNT_NOT_FOUND"):
    """The user has no account in this currency."""


class LedgerEntryNotFound(NotFound, reason="LEDGER_ENTRY_NOT_FOUND"):
    """The user has no ledger entry with this id."""


class CampaignNotFound(NotFound, reason="CAMPAIGN_NOT_FOUND"):
    """There is no campaign with this id."""


class CouponNotFound(NotFound, reason="COUPON_NOT_FOUND"):
    """The user has no coupon with this id."""


class ProductNotFound(NotFound, reason="PRODUCT_NOT_FOUND"):
    """There is no product with this id."""


class OrderNotFound(NotFound, reason="ORDER_NOT_FOUND"):
    """The user has no order with this id."""


class PaymentNotFound(NotFound, reason="PAYMENT_NOT_FOUND"):
    """The user has no payment with this id."""


class SagaNotFound(NotFound, reason="SAGA_NOT_FOUND"):
    """There is no such saga."""


class SeatNotFound(NotFound, reason="SEAT_NOT_FOUND"):
    """The product has no seat with one of the labels; ``fields`` names up to 10 of them."""


class TicketNotFound(NotFound, reason="TICKET_NOT_FOUND"):
    """The user has no ticket with this id."""


class CouponAlreadyIssued(AlreadyExists, reason="COUPON_ALREADY_ISSUED"):
    """The user already has a coupon of this campaign; ``metadata`` names it."""


class PaymentKeyUsed(AlreadyExists, reason="PAYMENT_KEY_USED"):
    """The payment_key was charged or declined under another request_id."""


class SeatExists(AlreadyExists, reason="SEAT_EXISTS"):
    """The product has some of these seats; ``quota`` names them. None was added."""


class InsufficientFunds(FailedPrecondition, reason="INSUFFICIENT_FUNDS"):
    """The account holds less than the amount; ``quota`` has the figures."""


class BalanceLimitExceeded(FailedPrecondition, reason="BALANCE_LIMIT_EXCEEDED"):
    """The balance would exceed 10^18, or the sum of all charges of the account 2^63 - 1."""


class DeductionCancelled(FailedPrecondition, reason="DEDUCTION_CANCELLED"):
    """This deduction was cancelled and cannot happen any more."""


class CampaignNotOpen(FailedPrecondition, reason="CAMPAIGN_NOT_OPEN"):
    """The campaign has not started, or has ended."""


class CampaignQueued(FailedPrecondition, reason="CAMPAIGN_QUEUED"):
    """The campaign issues coupons only by ticket: call ``queue_coupon``."""


class CouponNotUsable(FailedPrecondition, reason="COUPON_NOT_USABLE"):
    """The coupon has already been redeemed."""


class CouponExpired(FailedPrecondition, reason="COUPON_EXPIRED"):
    """The coupon's expire_time has passed."""


class CouponWithoutEffect(FailedPrecondition, reason="COUPON_WITHOUT_EFFECT"):
    """The coupon would take nothing off the order; it is not used up."""


class OrderAmountTooSmall(FailedPrecondition, reason="ORDER_AMOUNT_TOO_SMALL"):
    """The order is below the campaign's min_order_amount."""


class RedemptionCancelled(FailedPrecondition, reason="REDEMPTION_CANCELLED"):
    """This redemption was cancelled and cannot happen any more."""


class OpenOrdersLimit(FailedPrecondition, reason="OPEN_ORDERS_LIMIT"):
    """The user has as many orders waiting for their payment as one may have; pay or cancel one.

    ``quota`` has both figures.
    """


class OutOfStock(FailedPrecondition, reason="OUT_OF_STOCK"):
    """Less stock is free than was ordered; ``quota`` names every product that is short."""


class SeatTaken(FailedPrecondition, reason="SEAT_TAKEN"):
    """Other orders have some of the seats; ``quota`` names each, by line and label."""


class ProductSeated(FailedPrecondition, reason="PRODUCT_SEATED"):
    """The product has seats: a line must name them, and its stock grows by adding seats."""


class ProductNotSeated(FailedPrecondition, reason="PRODUCT_NOT_SEATED"):
    """The product has no seats, or stock that is not seats."""


class OrderNotPayable(FailedPrecondition, reason="ORDER_NOT_PAYABLE"):
    """The order is not PENDING, or its expire_time has passed."""


class OrderNotCancellable(FailedPrecondition, reason="ORDER_NOT_CANCELLABLE"):
    """The order has expired."""


class PaymentKeyRequired(FailedPrecondition, reason="PAYMENT_KEY_REQUIRED"):
    """The balance does not cover the amount due, and the request has no payment_key."""


class PaymentDeclined(FailedPrecondition, reason="PAYMENT_DECLINED"):
    """The gateway declined; nothing was charged, and the payment_key cannot be used again."""


class PaymentMethodNotSupported(FailedPrecondition, reason="PAYMENT_METHOD_NOT_SUPPORTED"):
    """The customer chose a method that Tally does not serve; nothing was charged.

    ``metadata["gateway_status"]`` has the gateway's status, such as WAITING_FOR_DEPOSIT.
    """


class PaymentOutcomeDiffers(FailedPrecondition, reason="PAYMENT_OUTCOME_DIFFERS"):
    """The gateway, or the payment's state, contradicts the outcome; ``metadata`` has both."""


class RefundRefused(FailedPrecondition, reason="REFUND_REFUSED"):
    """The gateway refused the refund permanently; ``metadata["gateway_code"]`` has its code."""


class PaymentCancelled(FailedPrecondition, reason="PAYMENT_CANCELLED"):
    """This confirmation was cancelled and cannot happen any more."""


class SagaNotRetryable(FailedPrecondition, reason="SAGA_NOT_RETRYABLE"):
    """The saga does not need attention."""


class RequestInProgress(Aborted, reason="REQUEST_IN_PROGRESS"):
    """The first call with this request_id is still running."""


class PaymentInProgress(Aborted, reason="PAYMENT_IN_PROGRESS"):
    """A payment of this order, or with this payment_key, is in progress."""


class CartChanged(Aborted, reason="CART_CHANGED"):
    """The cart has changed since expected_version: read it and decide again."""


class ConflictRetriesExhausted(Aborted, reason="CONFLICT_RETRIES_EXHAUSTED"):
    """Other writers kept changing the same rows; nothing was written."""


class CouponSoldOut(ResourceExhausted, reason="COUPON_SOLD_OUT"):
    """Every coupon of the campaign has been issued; a retry cannot succeed."""


class Overloaded(ResourceExhausted, reason="OVERLOADED"):
    """A bound of the replica is reached; repeat the call with the same request_id.

    Nothing was done, except that a CancelPayment may be stored, and that a PayOrder or CancelOrder
    whose saga another replica took over may have had its effect.
    """


class QueueFull(ResourceExhausted, reason="QUEUE_FULL"):
    """As many tickets wait as the campaign's queue can hold; nothing was queued."""


class RateLimited(ResourceExhausted, reason="RATE_LIMITED"):
    """The caller sends too many calls; nothing was done. ``retry_after_s`` is set."""


class TokenMissing(Unauthenticated, reason="TOKEN_MISSING"):
    """The call has no token: give the client one (``Tally(token=...)``)."""


class TokenInvalid(Unauthenticated, reason="TOKEN_INVALID"):
    """The token is not accepted: ``metadata["problem"]`` says why."""


class TokenExpired(Unauthenticated, reason="TOKEN_EXPIRED"):
    """The token has expired. A client whose token is a callable asks it again for the next call."""


class NotPermitted(PermissionDenied, reason="NOT_PERMITTED"):
    """The method does not admit the caller, or not for this user_id."""


class GatewayUnavailable(Unavailable, reason="GATEWAY_UNAVAILABLE"):
    """The payment gateway was not reached; nothing was charged.

    After PayOrder everything has been reversed: try again with a new request_id.
    """


class PaymentOutcomeUnknown(Unavailable, reason="PAYMENT_OUTCOME_UNKNOWN"):
    """The gateway was reached, and its outcome is not known yet."""


class DatabaseUnavailable(Unavailable, reason="DATABASE_UNAVAILABLE"):
    """The service's database did not answer."""


class TicketLost(Unavailable, reason="TICKET_LOST"):
    """The queue is lost or cannot be reached: call ``queue_coupon`` with the same request_id.

    It returns the ticket if that still waits or has its coupon, and else queues at the end.
    """


class PeerUnavailable(Unavailable, reason="PEER_UNAVAILABLE"):
    """A service that this call needs did not answer."""


class ReplicaStopping(Unavailable, reason="REPLICA_STOPPING"):
    """The replica is stopping; another one may answer."""


class ReplicaNotReady(Unavailable, reason="REPLICA_NOT_READY"):
    """The replica has just started and cannot serve yet; another one may answer."""


class Paused(Unavailable, reason="PAUSED"):
    """An operator has paused the method on all replicas; nothing was done."""
