"""Tally's client for Python: typed calls, typed errors, and retries where they are safe.

    async with Tally(order="dns:///order:50053") as tally:
        paid = await tally.order.pay_order(PayOrderRequest(...))

Requests and responses are the messages of the .proto files. docs/guides/python-client.md describes
deadlines, request_ids and retries. All errors are TallyError; ``tally_client.errors`` shows the
tree of their classes.
"""

from tally_client.calls import Listing, Unary, Watch
from tally_client.client import Tally
from tally_client.connection import ClientClosed, NotConnected, Target, Token
from tally_client.errors import *
from tally_client.refusals import *
from tally_client.request_ids import new_request_id
from tally_client.rpc.answer import FieldViolation, QuotaViolation
from tally_client.rpc.certificates import Certificates
from tally_client.translate import item_error

__all__ = [
    "Aborted",
    "AccountNotFound",
    "AlreadyExists",
    "AmountExceedsDue",
    "BalanceLimitExceeded",
    "CampaignNotFound",
    "CampaignNotOpen",
    "CampaignQueued",
    "CartChanged",
    "Certificates",
    "ClientClosed",
    "ConflictRetriesExhausted",
    "CouponAlreadyIssued",
    "CouponExpired",
    "CouponNotFound",
    "CouponNotUsable",
    "CouponSoldOut",
    "CouponWithoutEffect",
    "CurrencyMismatch",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "DeadlineTooShort",
    "DeductionCancelled",
    "FailedPrecondition",
    "FieldViolation",
    "GatewayUnavailable",
    "InsufficientFunds",
    "InternalError",
    "InvalidArgument",
    "InvalidField",
    "InvalidPageToken",
    "LedgerEntryNotFound",
    "Listing",
    "NoAnswer",
    "NotConnected",
    "NotFound",
    "NotPermitted",
    "OpenOrdersLimit",
    "OrderAmountTooSmall",
    "OrderNotCancellable",
    "OrderNotFound",
    "OrderNotPayable",
    "OutOfStock",
    "OutcomeUnknown",
    "Overloaded",
    "Paused",
    "PaymentCancelled",
    "PaymentDeclined",
    "PaymentInProgress",
    "PaymentKeyRequired",
    "PaymentKeyUsed",
    "PaymentMethodNotSupported",
    "PaymentNotFound",
    "PaymentOutcomeDiffers",
    "PaymentOutcomeUnknown",
    "PeerUnavailable",
    "PermissionDenied",
    "ProductNotFound",
    "ProductNotSeated",
    "ProductSeated",
    "QueueFull",
    "QuotaViolation",
    "RateLimited",
    "RedemptionCancelled",
    "RefundRefused",
    "ReplicaNotReady",
    "ReplicaStopping",
    "RequestIdReused",
    "RequestInProgress",
    "ResourceExhausted",
    "SagaNotFound",
    "SagaNotRetryable",
    "SeatExists",
    "SeatNotFound",
    "SeatTaken",
    "Tally",
    "TallyError",
    "Target",
    "TicketLost",
    "TicketNotFound",
    "Token",
    "TokenExpired",
    "TokenInvalid",
    "TokenMissing",
    "Unary",
    "Unauthenticated",
    "Unavailable",
    "Watch",
    "item_error",
    "new_request_id",
]
