"""The money view: which money is stuck, where, and since when?"""

from __future__ import annotations

from typing import Final

from deploy.monitoring.panels import Limits, Line, Panel, Row, Shape, Unit, View
from deploy.monitoring.queries import Now, Quantile, Rate, Series, Since
from deploy.monitoring.readings import INSTANCE

ACTIVE: Final = "tally_active_sagas"
OPEN: Final = "tally_open_payments"
ATTENTION: Final = {"state": "NEEDS_ATTENTION"}
UNKNOWN: Final = {"state": "UNKNOWN"}
CALLS: Final = "tally_grpc_calls_total"
KIND_STATE: Final = ("kind", "state")
_OK: Final = {"code": "OK"}


def _calls(methods: str, *, period_s: int = 1) -> Rate:
    return Rate(Series(CALLS, {**_OK, "method": f".*/({methods})"}), ("method",), period_s=period_s)


STUCK: Final = Panel(
    "Sagas that need attention",
    "Payments and cancellations that a person has to look at, by kind. Tally goes on trying. Each "
    "has a line saga_needs_attention in the log; SagaService/ListSagas lists them.",
    Unit.NUMBER,
    (Line(Now("max", Series(ACTIVE, ATTENTION), ("kind",))),),
    Shape.FIGURE,
    Limits(1, 1),
    width=6,
)
STUCK_AGE: Final = Panel(
    "The oldest that needs attention began",
    "Seconds since the oldest saga that needs attention began, by kind.",
    Unit.SECONDS,
    (Line(Now("max", Series(f"{ACTIVE}_oldest_seconds", ATTENTION), ("kind",))),),
    Shape.FIGURE,
    Limits(60, 600),
    width=6,
)
UNKNOWN_PAYMENTS: Final = Panel(
    "Payments with an unknown outcome",
    "Charges of which the gateway's answer was lost; each is looked up until the gateway says what "
    "it is. A few for some seconds are normal.",
    Unit.NUMBER,
    (Line(Now("max", Series(OPEN, UNKNOWN))),),
    Shape.FIGURE,
    Limits(1, 20),
    width=6,
)
UNKNOWN_AGE: Final = Panel(
    "The oldest unknown payment began",
    "Seconds since the oldest payment with an unknown outcome began. More than 5 minutes: the "
    "gateway does not answer look-ups.",
    Unit.SECONDS,
    (Line(Now("max", Series(f"{OPEN}_oldest_seconds", UNKNOWN))),),
    Shape.FIGURE,
    Limits(60, 300),
    width=6,
)
FAILED_UNDOS: Final = Panel(
    "Sagas with a compensation that failed",
    "Sagas of which giving something back has failed and is not done yet, by kind. It is tried "
    "again until it succeeds or is refused for good; saga_step_failed in the log is each attempt.",
    Unit.NUMBER,
    (Line(Now("max", Series("tally_active_failed_compensations"), ("kind",))),),
    Shape.FIGURE,
    Limits(1, 10),
    width=12,
)
FAILED_UNDO_AGE: Final = Panel(
    "For how long a compensation has failed",
    "Seconds since the oldest failure of a compensation that is not done yet, by kind.",
    Unit.SECONDS,
    (Line(Now("max", Series("tally_active_failed_compensations_oldest_seconds"), ("kind",))),),
    Shape.FIGURE,
    Limits(60, 600),
    width=12,
)
TAKEOVERS: Final = Panel(
    "Sagas taken over",
    "Sagas that a replica took up, per minute, by cause: expired is the saga of a replica that "
    "died or lost it, due one whose own back-off passed.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_saga_takeovers_total"), ("cause",), 60)),),
    width=12,
)
LOSSES: Final = Panel(
    "Sagas lost to another replica",
    "Sagas that a replica lost while it ran them, per minute. It was paused, or its heartbeat was "
    "not written for longer than the lease.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_saga_losses_total"), (INSTANCE,), 60)),),
    width=12,
)
BREACHES: Final = Panel(
    "Breaches in the last verdict of the audit",
    "Invariants of the books that do not hold. Any is a defect, or somebody changed a database: "
    "the line audit_verdict in the log of the audit has each.",
    Unit.NUMBER,
    (Line(Now("max", Series("tally_audit_breaches"))),),
    Shape.FIGURE,
    Limits(1, 1),
    width=6,
)
AUDIT_AGE: Final = Panel(
    "Time since the last verdict of the audit",
    "Seconds since an audit ended with a verdict, by scope: recent checks what was touched, "
    "hourly; full everything, nightly.",
    Unit.SECONDS,
    (Line(Since(Series("tally_audit_completion_timestamp_seconds"), ("scope",))),),
    Shape.FIGURE,
    width=6,
)
STANDING: Final = Panel(
    "Money that stands",
    "Money that neither an order nor a user holds, by a person's decision, in minor units by "
    "currency, in the last full verdict.",
    Unit.NUMBER,
    (Line(Now("max", Series("tally_audit_standing_minor"), ("currency",))),),
    Shape.FIGURE,
    width=6,
)
NEW_STANDING: Final = Panel(
    "New cases of what stands",
    "Effects that stand and that the last full verdict saw first: for a second pair of eyes. The "
    "line audit_verdict in the log of the audit names them.",
    Unit.NUMBER,
    (Line(Now("max", Series("tally_audit_new_standing"))),),
    Shape.FIGURE,
    Limits(1, 10),
    width=6,
)
SAGAS: Final = Panel(
    "Sagas on their way",
    "Sagas that have not ended, by kind and state, as the database has them: RUNNING pays, "
    "COMPENSATING gives back, RESOLVING gives back what a person closed.",
    Unit.NUMBER,
    (Line(Now("max", Series(ACTIVE), KIND_STATE)),),
    Shape.STACK,
)
SAGA_AGE: Final = Panel(
    "Age of the oldest saga on its way",
    "Seconds since the oldest saga of each kind and state began. A payment takes as long as the "
    "gateway; one that is taken over from a dead replica some 10 s more.",
    Unit.SECONDS,
    (Line(Now("max", Series(f"{ACTIVE}_oldest_seconds"), KIND_STATE)),),
)
ENDED: Final = Panel(
    "Sagas that ended or began to need attention",
    "Sagas per minute by kind and state: COMPLETED, COMPENSATED (everything was given back), "
    "RESOLVED (a person closed it) and NEEDS_ATTENTION.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_sagas_total"), KIND_STATE, 60)),),
)
STEPS_FAILED: Final = Panel(
    "Steps of sagas that did not succeed",
    "Calls of steps (do) and of what gives back (undo) that did not end with done, per minute. A "
    "step that stays here shows which service, or the gateway, stops payments.",
    Unit.PER_MINUTE,
    (
        Line(
            Rate(
                Series("tally_saga_steps_total", unless={"outcome": "done"}),
                ("step", "direction", "outcome"),
                60,
            )
        ),
    ),
)
STEPS: Final = Panel(
    "Steps of sagas",
    "Calls of steps that succeeded, per minute: the steps of one saga follow each other, so that "
    "the lines are close together unless one of them stops.",
    Unit.PER_MINUTE,
    (
        Line(
            Rate(
                Series("tally_saga_steps_total", {"outcome": "done"}),
                ("step", "direction"),
                60,
            )
        ),
    ),
)
RUNNERS: Final = Panel(
    "Sagas by replica",
    "Sagas that each replica of the order service runs now.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_sagas_running"), (INSTANCE,))),),
    Shape.STACK,
)
GATEWAY: Final = Panel(
    "Replies of the gateway",
    "Outcomes of calls to the payment gateway per minute, by what was asked. Declined and "
    "Unsupported are the customer's; Unknown, NotSent and Saturated are not.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_gateway_outcomes_total"), ("asked", "outcome"), 60, top=10)),),
    width=12,
)
GATEWAY_SECONDS: Final = Panel(
    "Time of calls to the gateway",
    "Median and 99th percentile of calls that were sent to the gateway, by what was asked.",
    Unit.SECONDS,
    (
        Line(Quantile(0.5, Series("tally_gateway_call_seconds"), ("asked",)), "50 %"),
        Line(Quantile(0.99, Series("tally_gateway_call_seconds"), ("asked",)), "99 %"),
    ),
    width=12,
)
OPEN_PAYMENTS: Final = Panel(
    "Payments to settle with the gateway",
    "Payments by state, as the database has them: PENDING is being confirmed, UNKNOWN is looked "
    "up, CONFIRMED is being given back, REFUND_REFUSED waits for a person.",
    Unit.NUMBER,
    (Line(Now("max", Series(OPEN), ("state",))),),
    Shape.STACK,
)
OPEN_AGE: Final = Panel(
    "Age of the oldest payment to settle",
    "Seconds since the oldest payment of each state began, or since its refund was asked for.",
    Unit.SECONDS,
    (Line(Now("max", Series(f"{OPEN}_oldest_seconds"), ("state",))),),
)
MARKS: Final = Panel(
    "Payment keys that came twice at once",
    "Marks in Redis by outcome: found is a second request for a payment key that is being "
    "confirmed, absent is Redis away (the database decides alone).",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_marks_total"), ("outcome",), 60)),),
)
LEDGER: Final = Panel(
    "Ledger entries",
    "Charges, deductions and refunds of balances that succeeded, replays included, per minute: "
    "single calls, and the items of BatchWrite together.",
    Unit.PER_MINUTE,
    (
        Line(_calls("ChargeBalance|DeductBalance|RefundDeduction", period_s=60)),
        Line(
            Rate(
                Series("tally_bulk_items_total", {**_OK, "method": ".*/BatchWrite"}),
                ("method",),
                60,
            ),
            "items of",
        ),
    ),
)
ORDERS: Final = Panel(
    "Orders",
    "Orders that were placed, paid and cancelled, replays included, per minute. Paid far below "
    "placed: look at the refusals of PayOrder.",
    Unit.PER_MINUTE,
    (Line(_calls("CreateOrder|PayOrder|CancelOrder", period_s=60)),),
)
COUPONS: Final = Panel(
    "Coupons",
    "Coupons that were issued, redeemed and restored, replays included, per minute.",
    Unit.PER_MINUTE,
    (Line(_calls("IssueCoupon|RedeemCoupon|RestoreCoupon", period_s=60)),),
)

VIEW: Final = View(
    "money",
    "Tally: money",
    "Which money is stuck, where, and since when?",
    (
        Row(
            "Stuck now",
            (
                *(STUCK, STUCK_AGE, UNKNOWN_PAYMENTS, UNKNOWN_AGE),
                *(FAILED_UNDOS, FAILED_UNDO_AGE),
            ),
        ),
        Row("Audit", (BREACHES, AUDIT_AGE, STANDING, NEW_STANDING)),
        Row(
            "Sagas",
            (
                *(SAGAS, SAGA_AGE, ENDED),
                *(STEPS, STEPS_FAILED, RUNNERS),
                *(TAKEOVERS, LOSSES),
            ),
        ),
        Row("Payments", (OPEN_PAYMENTS, OPEN_AGE, MARKS, GATEWAY, GATEWAY_SECONDS)),
        Row("Flow", (LEDGER, ORDERS, COUPONS)),
    ),
)
